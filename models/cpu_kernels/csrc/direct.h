// Direct convolution. Each task copies the rows of one image that it needs, with their padding, into a strip
// [row][phase][block][position][16], so that no tap needs a border check. The order of all sums depends only on the
// shapes, not on the number of threads.

#define STRIP (96 * 1024)  // Maximum floats of a strip, so that it fits into the L2 cache.

typedef struct {
  Work w;
  Taps taps;
  i64 places;                        // Positions of a phase.
  i64 strip_rows, strips;            // Rows of the result per strip; strips per image.
  i64 strip_floats;
  float *packed;                     // [group][tap, channel][channels of group]
  i64 slices;                        // Parts of the output channels.
  i64 pieces, piece_floats;          // Kernel gradient: number of partial sums.
  float *totals;                     // [piece][tap, channel][groups]
} Direct;

static Direct direct(const Work *w) {
  Direct d = {.w = *w};
  d.places = w->columns + ceil_div(w->wide, w->right) - 1;
  i64 block = d.places * BLOCK, phase = w->blocks * block, row = w->right * phase;
  d.taps = (Taps){w->tall, w->wide, w->channels, row, phase, block, w->right};
  i64 rows = max(1, min(w->rows, (STRIP / row - w->tall) / w->down + 1));
  d.strips = ceil_div(w->rows, rows);
  d.strip_rows = ceil_div(w->rows, d.strips);
  d.strip_floats = ((d.strip_rows - 1) * w->down + w->tall) * row;
  return d;
}

// Fills the strip for `count` rows of the result, starting at row `first`.
static void fill_strip(const Direct *d, i64 image, i64 first, i64 count, float *strip) {
  const Work *w = &d->w;
  i64 rows = (count - 1) * w->down + w->tall, pixels = image * w->height * w->width;
  for (i64 r = 0; r < rows; r++) {
    i64 from = first * w->down + r - w->top;
    float *line = strip + r * d->taps.row;
    if (from < 0 || from >= w->height) {
      memset(line, 0, 4 * d->taps.row);
      continue;
    }
    const float *row = w->x + (pixels + from * w->width) * w->pixel;
    for (i64 phase = 0; phase < w->right; phase++)
      for (i64 place = 0; place < d->places; place++) {
        i64 column = place * w->right + phase - w->left;
        float *to = line + phase * d->taps.phase + place * BLOCK;
        if (column < 0 || column >= w->width) {
          for (i64 b = 0; b < w->blocks; b++) memset(to + b * d->taps.block, 0, 4 * BLOCK);
          continue;
        }
        for (i64 c = 0; c < w->channels; c += LANES)
          *(vector *)(to + c / BLOCK * d->taps.block + c % BLOCK) = input(w, row + column * w->pixel, c);
      }
  }
}

// ---- Convolution ----

static void pack_group(const void *data, i64 g, float *memory) {
  const Direct *d = data;
  const Work *w = &d->w;
  i64 lines = w->tall * w->wide * w->channels, valid = min(w->group, w->outputs - g * w->group);
  float *to = d->packed + g * w->group * lines;
  for (i64 n = 0; n < lines; n++, to += w->group) {
    memcpy(to, w->kernel + n * w->outputs + g * w->group, 4 * valid);
    memset(to + valid, 0, 4 * (w->group - valid));
  }
}

// Computes some rows of one image's result, for one slice of the output channels.
static void convolve_strip(const void *data, i64 task, float *strip) {
  const Direct *d = data;
  const Work *w = &d->w;
  i64 slice = task % d->slices, n = task / d->slices;
  i64 image = n / d->strips, first = n % d->strips * d->strip_rows, count = min(d->strip_rows, w->rows - first);
  fill_strip(d, image, first, count, strip);
  for (i64 g = slice * w->groups / d->slices; g < (slice + 1) * w->groups / d->slices; g++) {
    const float *kernel = d->packed + g * w->group * w->tall * w->wide * w->channels;
    for (i64 r = 0; r < count; r++) {
      float *to = w->result + (image * w->rows + first + r) * w->columns * w->outputs + g * w->group;
      multiply_row(w->group / LANES, w->columns, &d->taps, strip + r * w->down * d->taps.row, kernel, to, w->outputs,
                   min(w->group, w->outputs - g * w->group));
    }
  }
}

static XLA_FFI_Error *convolve_directly(XLA_FFI_CallFrame *frame, Work *w) {
  set_groups(w, w->outputs <= LANES ? 1 : w->outputs <= 2 * LANES || w->columns > 6 ? 2 : 4);
  Direct d = direct(w);
  i64 floats = w->groups * w->group * w->tall * w->wide * w->channels;
  d.packed = allocate(floats);
  if (!d.packed) return out_of_memory(frame, floats);
  // If there are few strips, divide them further, by output channels.
  d.slices = min(w->groups, ceil_div(FEW_TASKS, w->batch * d.strips));
  XLA_FFI_Error *error =
      run_both(frame, &d, pack_group, w->groups, convolve_strip, w->batch * d.strips * d.slices, d.strip_floats);
  free(d.packed);
  return error;
}

// ---- Kernel gradient ----

// Computes the sums over one piece (some of the images) for one slice (some of the groups of output channels).
static void correlate_piece(const void *data, i64 task, float *strip) {
  const Direct *d = data;
  const Work *w = &d->w;
  i64 piece = task / d->slices, slice = task % d->slices, width = w->groups * w->group;
  i64 skipped = slice * w->groups / d->slices, groups = (slice + 1) * w->groups / d->slices - skipped;
  float *total = d->totals + piece * d->piece_floats + skipped * w->group;
  for (i64 n = 0; n < w->tall * w->wide * w->channels; n++) memset(total + n * width, 0, 4 * groups * w->group);
  int ragged = w->outputs % w->group != 0;
  float *filled = strip + d->strip_floats;  // The gradient, padded to whole groups of channels if needed.
  for (i64 image = piece * w->batch / d->pieces; image < (piece + 1) * w->batch / d->pieces; image++)
    for (i64 first = 0; first < w->rows; first += d->strip_rows) {
      i64 count = min(d->strip_rows, w->rows - first);
      fill_strip(d, image, first, count, strip);
      const float *gradient = w->gradient + (image * w->rows + first) * w->columns * w->outputs;
      for (i64 n = 0; ragged && n < count * w->columns; n++) {
        memcpy(filled + n * width, gradient + n * w->outputs, 4 * w->outputs);
        memset(filled + n * width + w->outputs, 0, 4 * (width - w->outputs));
      }
      const float *from = (ragged ? filled : gradient) + skipped * w->group;
      for (i64 i = 0; i < w->tall; i++)
        for (i64 j = 0; j < w->wide; j++)
          for (i64 b = 0; b < w->blocks; b++)
            correlate_block(w->group / LANES, min(BLOCK, w->channels - b * BLOCK), groups, count, w->columns,
                            strip + tap(&d->taps, i, j) + b * d->taps.block, w->down * d->taps.row, from,
                            ragged ? width : w->outputs,
                            total + ((i * w->wide + j) * w->channels + b * BLOCK) * width, width);
    }
}

static void add_pieces(const void *data, i64 tap, float *memory) {
  const Direct *d = data;
  const Work *w = &d->w;
  i64 width = w->groups * w->group;
  for (i64 n = tap * w->channels; n < (tap + 1) * w->channels; n++) {
    float *to = w->result + n * w->outputs;
    memcpy(to, d->totals + n * width, 4 * w->outputs);
    for (i64 p = 1; p < d->pieces; p++) {
      const float *from = d->totals + p * d->piece_floats + n * width;
      for (i64 o = 0; o < w->outputs; o++) to[o] += from[o];
    }
  }
}

static XLA_FFI_Error *correlate_directly(XLA_FFI_CallFrame *frame, Work *w) {
  set_groups(w, w->outputs <= LANES ? 1 : w->channels <= 6 && w->outputs > 2 * LANES ? 4 : 2);
  Direct d = direct(w);
  d.piece_floats = w->tall * w->wide * w->channels * w->groups * w->group;
  d.pieces = max(1, min(min(w->batch, FEW_TASKS), (4 << 20) / d.piece_floats));
  d.slices = min(w->groups, ceil_div(FEW_TASKS, d.pieces));
  d.totals = allocate(d.pieces * d.piece_floats);
  if (!d.totals) return out_of_memory(frame, d.pieces * d.piece_floats);
  XLA_FFI_Error *error = run_both(frame, &d, correlate_piece, d.pieces * d.slices, add_pieces, w->tall * w->wide,
                                  d.strip_floats + d.strip_rows * w->columns * w->groups * w->group);
  free(d.totals);
  return error;
}

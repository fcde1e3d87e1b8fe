// Winograd's minimal filtering F(4x4, 3x3) for stride 1: 36 products instead of 144 for a tile of 4x4 results (Lavin &
// Gray 2015, "Fast algorithms for convolutional neural networks", section 4.3). Each of the 36 places of a transformed
// tile needs a matrix product over the channels. A larger kernel is split into several 3x3 kernels that read shifted
// images, and their channels are concatenated. The tests accept errors of up to 2e-5 of the largest value.

#define SIDE 6            // Side of a tile of the image.
#define STEP 4            // Side of a tile of results.
#define PLACES 36
#define CHUNK (1 << 20)   // Floats of the transformed tiles that the kernel gradient processes at a time.
typedef vector square[SIDE][SIDE];

// Transforms six values of an image: B^T d.
INLINE void image_line(const vector *d, vector *to, const int stride) {
  vector a = d[4 * stride] - 4 * d[2 * stride], b = d[3 * stride] - 4 * d[stride];
  vector e = d[4 * stride] - d[2 * stride], f = 2 * (d[3 * stride] - d[stride]);
  to[0] = 4 * (d[0] - d[2 * stride]) - d[2 * stride] + d[4 * stride];
  to[stride] = a + b, to[2 * stride] = a - b, to[3 * stride] = e + f, to[4 * stride] = e - f;
  to[5 * stride] = 4 * (d[stride] - d[3 * stride]) - d[3 * stride] + d[5 * stride];
}

// Transforms three values of a kernel: G g.
INLINE void kernel_line(const vector *g, vector *to, const int stride, const int to_stride) {
  vector a = (g[0] + g[2 * stride]) * (-1.0f / 6), b = g[stride] * (1.0f / 6);
  vector e = g[0] * (1.0f / 24) + g[2 * stride] * (1.0f / 6), f = g[stride] * (1.0f / 12);
  to[0] = g[0] * 0.25f, to[5 * to_stride] = g[2 * stride];
  to[to_stride] = a - b, to[2 * to_stride] = a + b, to[3 * to_stride] = e + f, to[4 * to_stride] = e - f;
}

// Transforms six products to four results: A^T m.
INLINE void result_line(const vector *m, vector *to, const int stride) {
  vector a = m[stride] + m[2 * stride], b = m[stride] - m[2 * stride];
  vector e = m[3 * stride] + m[4 * stride], f = m[3 * stride] - m[4 * stride];
  to[0] = m[0] + a + e, to[stride] = b + 2 * f, to[2 * stride] = a + 4 * e, to[3 * stride] = b + 8 * f + m[5 * stride];
}

// Transforms four values of the gradient of the results: A y.
INLINE void gradient_line(const vector *y, vector *to, const int stride) {
  vector a = y[0] + y[2 * stride], b = y[stride] + y[3 * stride];
  vector e = y[0] + 4 * y[2 * stride], f = 2 * y[stride] + 8 * y[3 * stride];
  to[0] = y[0], to[5 * stride] = y[3 * stride];
  to[stride] = a + b, to[2 * stride] = a - b, to[3 * stride] = e + f, to[4 * stride] = e - f;
}

// Transforms six products to three values of the kernel gradient: G^T u.
INLINE void kernel_gradient_line(const vector *u, vector *to, const int stride) {
  vector a = u[stride] + u[2 * stride], b = u[2 * stride] - u[stride];
  vector e = u[3 * stride] + u[4 * stride], f = u[3 * stride] - u[4 * stride];
  to[0] = u[0] * 0.25f - a * (1.0f / 6) + e * (1.0f / 24);
  to[stride] = b * (1.0f / 6) + f * (1.0f / 12);
  to[2 * stride] = (e - a) * (1.0f / 6) + u[5 * stride];
}

typedef struct {
  Work w;
  Taps taps;                           // The taps of a row of transformed tiles, a 1x1 convolution.
  i64 across, of_image, tiles;         // Tiles per row of results, per image, in total.
  i64 shifts_across, shifts, lines;    // Number of 3x3 kernels; rows of a matrix product.
  i64 shift;                           // The first 3x3 kernel to process.
  i64 first, count;                    // The first tile of a task or chunk, and the number of tiles.
  float *kernel;                       // Transformed: [place][group][shift, channel][channels of group]
  float *image, *gradient, *total;     // [place][shift, block][tile][16], [place][tile][groups], [place][line][groups]
} Winograd;

static Winograd winograd(const Work *w) {
  Winograd k = {.w = *w, .across = ceil_div(w->columns, STEP), .shifts_across = ceil_div(w->wide, 3)};
  k.of_image = k.across * ceil_div(w->rows, STEP);
  k.tiles = w->batch * k.of_image;
  k.shifts = ceil_div(w->tall, 3) * k.shifts_across;
  k.lines = k.shifts == 1 ? w->channels : k.shifts * w->blocks * BLOCK;
  return k;
}

typedef struct {
  i64 image, row, column;  // Position of the tile's first result.
} Tile;

INLINE Tile tile(const Winograd *k, i64 n) {
  return (Tile){n / k->of_image, n % k->of_image / k->across * STEP, n % k->across * STEP};
}

// Loads the channels starting at c of a tile with the first pixel (top, left). `whole`: they fill a vector and no scale
// and shift are applied. Pixels outside the image are zeros.
INLINE void load_tile(const Work *w, const float *image, i64 top, i64 left, i64 c, const int whole, square d) {
  i64 first = max(0, -left), end = min(SIDE, w->width - left);
  for (i64 i = 0; i < SIDE; i++) {
    i64 row = top + i;
    const float *pixel = image + (row * w->width + left) * w->pixel;
    if (whole && first == 0 && end == SIDE && row >= 0 && row < w->height) {
#pragma clang loop unroll(full)
      for (int j = 0; j < SIDE; j++) d[i][j] = *(const vector *)(pixel + j * w->pixel + c);
      continue;
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < SIDE; j++) d[i][j] = (vector){};
    if (row >= 0 && row < w->height)
      for (i64 j = first; j < end; j++)
        d[i][j] = whole ? *(const vector *)(pixel + j * w->pixel + c) : input(w, pixel + j * w->pixel, c);
  }
}

// Transforms tile `n` of the images to to[place * place_floats + (shift, block) * block_floats + channel].
static void transform_image(const Winograd *k, i64 n, float *to, i64 place_floats, i64 block_floats) {
  const Work *w = &k->w;
  Tile t = tile(k, n);
  const float *image = w->x + t.image * w->height * w->width * w->pixel;
  for (i64 shift = 0; shift < k->shifts; shift++)
    for (i64 c = 0; c < w->blocks * BLOCK; c += LANES) {
      i64 top = t.row + (k->shift + shift) / k->shifts_across * 3 - w->top;
      i64 left = t.column + (k->shift + shift) % k->shifts_across * 3 - w->left;
      square d, half;
      if (!w->scale && c + LANES <= w->channels) load_tile(w, image, top, left, c, 1, d);
      else load_tile(w, image, top, left, c, 0, d);
#pragma clang loop unroll(full)
      for (int j = 0; j < SIDE; j++) image_line(&d[0][j], &half[0][j], SIDE);
#pragma clang loop unroll(full)
      for (int i = 0; i < SIDE; i++) image_line(half[i], d[i], 1);
      float *at = to + (shift * w->blocks + c / BLOCK) * block_floats + c % BLOCK;
      for (i64 p = 0; p < PLACES; p++) *(vector *)(at + p * place_floats) = d[p / SIDE][p % SIDE];
    }
}

// ---- Convolution ----

// The weights of input channel `c` and tap `n` (0 to 8) of the 3x3 kernel `shift`; NULL outside the kernel.
INLINE float *kernel_row(const Winograd *k, float *kernel, i64 shift, i64 n, i64 c) {
  i64 i = (k->shift + shift) / k->shifts_across * 3 + n / 3, j = (k->shift + shift) % k->shifts_across * 3 + n % 3;
  int inside = i < k->w.tall && j < k->w.wide && c < k->w.channels;
  return inside ? kernel + ((i * k->w.wide + j) * k->w.channels + c) * k->w.outputs : NULL;
}

static void transform_kernel(const void *data, i64 g, float *memory) {
  const Winograd *k = data;
  const Work *w = &k->w;
  i64 of_shift = k->lines / k->shifts;
  for (i64 line = 0; line < k->lines; line++)
    for (i64 o = 0; o < w->group; o += LANES) {
      vector taps[3][3], half[SIDE][3];
      square u;
      i64 first = g * w->group + o;
      for (i64 n = 0; n < 9; n++) {
        const float *row = kernel_row(k, (float *)w->kernel, line / of_shift, n, line % of_shift);
        taps[n / 3][n % 3] = row ? load(row + first, w->outputs - first) : (vector){};
      }
#pragma clang loop unroll(full)
      for (int j = 0; j < 3; j++) kernel_line(&taps[0][j], &half[0][j], 3, 3);
#pragma clang loop unroll(full)
      for (int i = 0; i < SIDE; i++) kernel_line(half[i], u[i], 1, 1);
      for (i64 p = 0; p < PLACES; p++)
        *(vector *)(k->kernel + ((p * w->groups + g) * k->lines + line) * w->group + o) = u[p / SIDE][p % SIDE];
    }
}

static void convolve_tiles(const void *data, i64 task, float *image) {
  const Winograd *k = data;
  const Work *w = &k->w;
  i64 first = task * k->count, count = min(k->count, k->tiles - first);
  i64 place_floats = k->shifts * w->blocks * k->taps.block;
  float *products = image + PLACES * place_floats;
  for (i64 t = 0; t < count; t++) transform_image(k, first + t, image + t * BLOCK, place_floats, k->taps.block);
  for (i64 g = 0; g < w->groups; g++) {
    for (i64 p = 0; p < PLACES; p++)
      multiply_row(w->group / LANES, count, &k->taps, image + p * place_floats,
                   k->kernel + (p * w->groups + g) * k->lines * w->group, products + p * count * w->group, w->group,
                   w->group);
    for (i64 t = 0; t < count; t++) {
      Tile at = tile(k, first + t);
      i64 rows = min(STEP, w->rows - at.row), columns = min(STEP, w->columns - at.column);
      float *to = w->result + ((at.image * w->rows + at.row) * w->columns + at.column) * w->outputs + g * w->group;
      for (i64 o = 0; o < w->group; o += LANES) {
        square m, half;
        for (i64 p = 0; p < PLACES; p++) m[p / SIDE][p % SIDE] = *(vector *)(products + (p * count + t) * w->group + o);
#pragma clang loop unroll(full)
        for (int j = 0; j < SIDE; j++) result_line(&m[0][j], &half[0][j], SIDE);
#pragma clang loop unroll(full)
        for (int i = 0; i < STEP; i++) result_line(half[i], m[i], 1);
        i64 valid = w->outputs - g * w->group - o;
        for (i64 i = 0; i < rows; i++)
          for (i64 j = 0; j < columns; j++) store(to + (i * w->columns + j) * w->outputs + o, m[i][j], valid);
      }
    }
  }
}

static XLA_FFI_Error *convolve_by_winograd(XLA_FFI_CallFrame *frame, Work *w) {
  set_groups(w, w->outputs <= LANES ? 1 : 2);
  Winograd k = winograd(w);
  // Tiles per task: few enough to fit into the L2 cache, and at most two tiles of the inner loop.
  k.count = min(ceil_div(k.tiles, FEW_TASKS), max(12, min(24, 3072 / k.lines)));
  k.taps = (Taps){1, 1, k.lines, 0, 0, k.count * BLOCK, 1};
  i64 floats = PLACES * w->groups * w->group * k.lines;
  k.kernel = allocate(floats);
  if (!k.kernel) return out_of_memory(frame, floats);
  XLA_FFI_Error *error = run_both(frame, &k, transform_kernel, w->groups, convolve_tiles, ceil_div(k.tiles, k.count),
                                  PLACES * (k.shifts * w->blocks * k.taps.block + k.count * w->group));
  free(k.kernel);
  return error;
}

// ---- Kernel gradient: for each place, the product of transformed images and gradients, summed over the tiles ----

static void transform_tile(const void *data, i64 t, float *memory) {
  const Winograd *k = data;
  const Work *w = &k->w;
  i64 block = k->count * BLOCK, width = w->groups * w->group;
  transform_image(k, k->first + t, k->image + t * BLOCK, w->blocks * block, block);
  Tile at = tile(k, k->first + t);
  const float *from = w->gradient + ((at.image * w->rows + at.row) * w->columns + at.column) * w->outputs;
  for (i64 o = 0; o < width; o += LANES) {
    vector y[STEP][STEP], half[SIDE][STEP];
    square m;
    for (i64 i = 0; i < STEP; i++)
      for (i64 j = 0; j < STEP; j++) {
        int inside = at.row + i < w->rows && at.column + j < w->columns;
        y[i][j] = inside ? load(from + (i * w->columns + j) * w->outputs + o, w->outputs - o) : (vector){};
      }
#pragma clang loop unroll(full)
    for (int j = 0; j < STEP; j++) gradient_line(&y[0][j], &half[0][j], STEP);
#pragma clang loop unroll(full)
    for (int i = 0; i < SIDE; i++) gradient_line(half[i], m[i], 1);
    for (i64 p = 0; p < PLACES; p++) *(vector *)(k->gradient + (p * k->count + t) * width + o) = m[p / SIDE][p % SIDE];
  }
}

static void correlate_place(const void *data, i64 task, float *memory) {
  const Winograd *k = data;
  const Work *w = &k->w;
  i64 place = task / w->blocks, line = task % w->blocks * BLOCK, width = w->groups * w->group;
  correlate_block(w->group / LANES, min(BLOCK, k->lines - line), w->groups, 1, k->count,
                  k->image + task * k->count * BLOCK, 0, k->gradient + place * k->count * width, width,
                  k->total + (place * k->lines + line) * width, width);
}

static void finish_line(const void *data, i64 line, float *memory) {
  const Winograd *k = data;
  const Work *w = &k->w;
  for (i64 o = 0; o < w->outputs; o += LANES) {
    square u;
    vector half[3][SIDE], d[3][3];
    for (i64 p = 0; p < PLACES; p++)
      u[p / SIDE][p % SIDE] = *(vector *)(k->total + (p * k->lines + line) * w->groups * w->group + o);
#pragma clang loop unroll(full)
    for (int j = 0; j < SIDE; j++) kernel_gradient_line(&u[0][j], &half[0][j], SIDE);
#pragma clang loop unroll(full)
    for (int i = 0; i < 3; i++) kernel_gradient_line(half[i], d[i], 1);
    for (i64 n = 0; n < 9; n++) {
      float *row = kernel_row(k, w->result, 0, n, line);
      if (row) store(row + o, d[n / 3][n % 3], w->outputs - o);
    }
  }
}

static XLA_FFI_Error *correlate_by_winograd(XLA_FFI_CallFrame *frame, Work *w) {
  set_groups(w, w->outputs <= LANES ? 1 : 2);
  Winograd k = winograd(w);
  i64 width = w->groups * w->group, lines = w->blocks * BLOCK, of_total = PLACES * lines * width, shifts = k.shifts;
  i64 chunk = ceil_div(k.tiles, ceil_div(k.tiles, max(48, CHUNK / (PLACES * (lines + width)))));
  i64 floats = of_total + PLACES * chunk * (lines + width);
  k.total = allocate(floats);
  if (!k.total) return out_of_memory(frame, floats);
  k.image = k.total + of_total;
  k.gradient = k.image + PLACES * chunk * lines;
  k.shifts = 1, k.lines = w->channels;  // Process one 3x3 kernel at a time: all together would not fit into the caches.
  XLA_FFI_Error *error = NULL;
  for (; k.shift < shifts && !error; k.shift++) {
    memset(k.total, 0, 4 * of_total);
    for (k.first = 0; k.first < k.tiles && !error; k.first += chunk) {
      k.count = min(chunk, k.tiles - k.first);
      error = run_both(frame, &k, transform_tile, k.count, correlate_place, PLACES * w->blocks, 0);
    }
    if (!error) error = run_tasks(frame, finish_line, &k, w->channels, 0);
  }
  free(k.total);
  return error;
}

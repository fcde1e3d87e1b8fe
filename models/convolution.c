// Convolution of float32 images [B, H, W, C] by a kernel [h, w, C, O], and its kernel's gradient, for CPUs.
//
// Both keep a tile of results in vector registers while they run over the products. Each task copies the rows of one
// image that it needs, with their padding, into a strip in which a position's channels lie in blocks of 16 and the
// positions that a stride takes together are neighbours: every address is then one pointer plus a constant, and no tap
// has a border. The order of all sums depends on the shapes alone, not on the number of threads.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#if defined(__AVX512F__)
#define LANES 16
#define TILE 24  // Vector registers that hold results; the others hold operands.
#elif defined(__AVX2__)
#define LANES 8
#define TILE 12
#else
#define LANES 4
#define TILE 24
#endif
#define BLOCK 16            // Channels of a block of the strip.
#define STRIP (96 * 1024)   // Floats of a strip at most, so that it stays in the second-level cache.
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int64_t i64;

INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 most(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 parts(i64 a, i64 b) { return (a + b - 1) / b; }
INLINE vector spread(float x) { return x - (vector){}; }

typedef struct {
  i64 batch, height, width, channels;      // Of the image.
  i64 rows, columns, outputs;              // Of the result (of its gradient).
  i64 tall, wide;                          // The kernel.
  i64 down, right, top, left;              // Strides; padding above and to the left.
  i64 blocks, phases_width, row;           // Of the strip: blocks of channels, positions of a phase, floats of a row.
  i64 group, groups;                       // Output channels of a tile; tiles of channels.
  i64 strip_rows, strips;                  // Rows of the result that one strip serves; strips of an image.
  const float *x, *kernel, *gradient;
  float *result, *packed;
  i64 pieces, slices, piece_floats;        // Of the kernel's gradient: partial sums, parts of the output channels.
} Work;

// ---- Tasks on XLA's threads ----

typedef struct {
  void (*run)(const Work *, i64 task);
  const Work *work;
  i64 tasks;
  i64 next, done, users;
} Job;

static void take_part(void *data) {
  Job *job = data;
  for (i64 task; (task = __atomic_fetch_add(&job->next, 1, __ATOMIC_ACQ_REL)) < job->tasks;) {
    job->run(job->work, task);
    __atomic_fetch_add(&job->done, 1, __ATOMIC_ACQ_REL);
  }
  if (__atomic_sub_fetch(&job->users, 1, __ATOMIC_ACQ_REL) == 0) free(job);
}

// Runs the tasks on the calling thread and on those of XLA's pool that come in time; a late one finds nothing to do.
static void run_tasks(XLA_FFI_CallFrame *frame, void (*run)(const Work *, i64), const Work *work, i64 tasks) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&count);
  if (error) {
    XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
    frame->api->XLA_FFI_Error_Destroy(&destroy);
    threads = 1;
  }
  Job *job = malloc(sizeof *job);
  i64 helpers = most(0, least(threads, tasks) - 1);
  *job = (Job){run, work, tasks, 0, 0, 2 + helpers};  // One use is this function's own.
  for (i64 i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args schedule = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, take_part, job};
    error = frame->api->XLA_FFI_ThreadPool_Schedule(&schedule);
    if (error) {
      XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
      frame->api->XLA_FFI_Error_Destroy(&destroy);
      __atomic_sub_fetch(&job->users, 1, __ATOMIC_ACQ_REL);
    }
  }
  take_part(job);
  while (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) < tasks) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  if (__atomic_sub_fetch(&job->users, 1, __ATOMIC_ACQ_REL) == 0) free(job);
}

// ---- Memory ----

// `floats` floats that begin with a cache line. Freed with free.
static float *allocate(i64 floats) { return aligned_alloc(64, parts(4 * floats, 64) * 64); }

typedef struct {
  float *floats;
  i64 size;
} Room;

// A thread's own memory of at least `floats` floats, kept from task to task: new pages would cost more than the copy.
static float *keep(Room *room, i64 floats) {
  if (room->size < floats) {
    free(room->floats);
    *room = (Room){allocate(floats), floats};
  }
  return room->floats;
}

static _Thread_local Room strip_room, gradient_room;

// ---- The strip ----

// Rows `first` to `first + count` of the result need these rows of the image, padded. [row][phase][block][place][16]
static void fill_strip(const Work *w, const float *image, i64 first, i64 count, float *strip) {
  i64 rows = (count - 1) * w->down + w->tall;
  i64 block_floats = w->phases_width * BLOCK, phase_floats = w->blocks * block_floats;
  for (i64 r = 0; r < rows; r++, strip += w->row) {
    i64 from = first * w->down + r - w->top;
    if (from < 0 || from >= w->height) {
      memset(strip, 0, 4 * w->row);
      continue;
    }
    const float *row = image + from * w->width * w->channels;
    for (i64 phase = 0; phase < w->right; phase++)
      for (i64 place = 0; place < w->phases_width; place++) {
        i64 column = place * w->right + phase - w->left;
        float *to = strip + phase * phase_floats + place * BLOCK;
        if (column < 0 || column >= w->width) {
          for (i64 b = 0; b < w->blocks; b++) memset(to + b * block_floats, 0, 4 * BLOCK);
          continue;
        }
        const float *at = row + column * w->channels;
        i64 left = w->channels;
        for (; left >= BLOCK; left -= BLOCK, at += BLOCK, to += block_floats) memcpy(to, at, 4 * BLOCK);
        for (i64 c = 0; c < left; c++) to[c] = at[c];
      }
  }
}

// Where tap (i, j) of the result's first position lies in the strip, for the first block of channels.
INLINE i64 tap(const Work *w, i64 i, i64 j) {
  return i * w->row + (j % w->right) * w->blocks * w->phases_width * BLOCK + (j / w->right) * BLOCK;
}

// ---- The convolution ----

// `places` neighbouring positions by `vectors` vectors of output channels.
INLINE void multiply(const Work *w, const int places, const int vectors, const float *strip, const float *kernel,
                     float *to, i64 valid) {
  vector sum[TILE] = {};
  for (i64 i = 0; i < w->tall; i++)
    for (i64 j = 0; j < w->wide; j++) {
      const float *x = strip + tap(w, i, j);
      for (i64 left = w->channels; left > 0; left -= BLOCK, x += w->phases_width * BLOCK) {
        i64 count = least(left, BLOCK);
        for (i64 c = 0; c < count; c++, kernel += vectors * LANES) {
          vector k[4];
          for (int v = 0; v < vectors; v++) k[v] = *(const vector *)(kernel + v * LANES);
#pragma clang loop unroll(full)
          for (int p = 0; p < places; p++)
            for (int v = 0; v < vectors; v++) sum[p * vectors + v] += spread(x[p * BLOCK + c]) * k[v];
        }
      }
    }
#pragma clang loop unroll(full)
  for (int p = 0; p < places; p++, to += w->outputs) {
    if (valid >= vectors * LANES) {
      for (int v = 0; v < vectors; v++) *(vector *)(to + v * LANES) = sum[p * vectors + v];
    } else {
      float all[4 * LANES];
      for (int v = 0; v < vectors; v++) *(vector *)(all + v * LANES) = sum[p * vectors + v];
      for (i64 o = 0; o < valid; o++) to[o] = all[o];
    }
  }
}

#define CASE(P, V) case P: multiply(w, P, V, strip, kernel, to, valid); break;
#define SOME(V) CASE(1, V) CASE(2, V) CASE(3, V)
#define MORE(V) SOME(V) CASE(4, V) CASE(5, V) CASE(6, V)
#define MANY(V) MORE(V) CASE(7, V) CASE(8, V) CASE(9, V) CASE(10, V) CASE(11, V) CASE(12, V)
#define ALL(V) MANY(V) CASE(13, V) CASE(14, V) CASE(15, V) CASE(16, V) CASE(17, V) CASE(18, V) CASE(19, V) CASE(20, V) \
  CASE(21, V) CASE(22, V) CASE(23, V) CASE(24, V)
#define TILES(V, CASES) \
  static void multiply_##V(const Work *w, i64 places, const float *strip, const float *kernel, float *to, i64 valid) { \
    switch (places) { CASES(V) } \
  }
#if TILE == 24
TILES(1, ALL)
TILES(2, MANY)
TILES(4, MORE)
#else
TILES(1, MANY)
TILES(2, MORE)
TILES(4, SOME)
#endif

static void convolve_strip(const Work *w, i64 task) {
  i64 image = task / w->strips, first = task % w->strips * w->strip_rows;
  i64 count = least(w->strip_rows, w->rows - first), vectors = w->group / LANES;
  float *strip = keep(&strip_room, w->row * ((count - 1) * w->down + w->tall));
  fill_strip(w, w->x + image * w->height * w->width * w->channels, first, count, strip);
  float *to = w->result + (image * w->rows + first) * w->columns * w->outputs;
  i64 tiles = parts(w->columns, TILE / vectors);  // Of nearly equal width.
  for (i64 g = 0; g < w->groups; g++) {
    const float *kernel = w->packed + g * w->group * w->tall * w->wide * w->channels;
    i64 valid = least(w->group, w->outputs - g * w->group);
    for (i64 r = 0; r < count; r++)
      for (i64 t = 0; t < tiles; t++) {
        i64 column = t * w->columns / tiles, places = (t + 1) * w->columns / tiles - column;
        const float *x = strip + r * w->down * w->row + column * BLOCK;
        float *y = to + (r * w->columns + column) * w->outputs + g * w->group;
        if (vectors == 1) multiply_1(w, places, x, kernel, y, valid);
        else if (vectors == 2) multiply_2(w, places, x, kernel, y, valid);
        else multiply_4(w, places, x, kernel, y, valid);
      }
  }
}

// The kernel's output channels in groups, the last one filled up with zeros: [group][tap, channel][channels of group]
static void pack_group(const Work *w, i64 g) {
  i64 lines = w->tall * w->wide * w->channels, valid = least(w->group, w->outputs - g * w->group);
  float *to = w->packed + g * w->group * lines;
  for (i64 n = 0; n < lines; n++, to += w->group) {
    memcpy(to, w->kernel + n * w->outputs + g * w->group, 4 * valid);
    memset(to + valid, 0, 4 * (w->group - valid));
  }
}

// ---- The kernel's gradient ----

// Adds `count` positions of a row to a tile of `channels` input channels by `vectors` vectors of output channels.
INLINE void correlate(const int channels, const int vectors, i64 rows, i64 columns, const float *strip, i64 strip_row,
                      const float *gradient, i64 width, float *total, i64 total_width) {
  vector sum[TILE];
#pragma clang loop unroll(full)
  for (int c = 0; c < channels; c++)
    for (int v = 0; v < vectors; v++) sum[c * vectors + v] = *(vector *)(total + c * total_width + v * LANES);
  for (i64 r = 0; r < rows; r++) {
    const float *x = strip + r * strip_row, *g = gradient + r * columns * width;
    for (i64 n = 0; n < columns; n++, x += BLOCK, g += width) {
      vector k[4];
      for (int v = 0; v < vectors; v++) k[v] = *(const vector *)(g + v * LANES);
#pragma clang loop unroll(full)
      for (int c = 0; c < channels; c++)
        for (int v = 0; v < vectors; v++) sum[c * vectors + v] += spread(x[c]) * k[v];
    }
  }
#pragma clang loop unroll(full)
  for (int c = 0; c < channels; c++)
    for (int v = 0; v < vectors; v++) *(vector *)(total + c * total_width + v * LANES) = sum[c * vectors + v];
}

#undef CASE
#define CASE(C, V) case C: correlate(C, V, rows, columns, strip, strip_row, gradient, width, total, total_width); break;
#define CORRELATIONS(V, CASES) \
  static void correlate_##V(i64 channels, i64 rows, i64 columns, const float *strip, i64 strip_row, \
                            const float *gradient, i64 width, float *total, i64 total_width) { \
    switch (channels) { CASES(V) } \
  }
#if TILE == 24
CORRELATIONS(1, ALL)
CORRELATIONS(2, MANY)
CORRELATIONS(4, MORE)
#else
CORRELATIONS(1, MANY)
CORRELATIONS(2, MORE)
CORRELATIONS(4, SOME)
#endif

// A piece is some images, a slice some of the groups of output channels.
static void correlate_piece(const Work *w, i64 task) {
  i64 piece = task / w->slices, slice = task % w->slices, vectors = w->group / LANES;
  i64 first_group = slice * w->groups / w->slices, last_group = (slice + 1) * w->groups / w->slices;
  i64 width = w->groups * w->group, most_channels = least(BLOCK, TILE / vectors);
  float *total = w->packed + piece * w->piece_floats;
  for (i64 n = 0; n < w->tall * w->wide * w->channels; n++)
    memset(total + n * width + first_group * w->group, 0, 4 * (last_group - first_group) * w->group);
  float *strip = keep(&strip_room, w->row * ((w->strip_rows - 1) * w->down + w->tall));
  int ragged = w->outputs % w->group != 0;
  float *filled = ragged ? keep(&gradient_room, w->strip_rows * w->columns * width) : NULL;
  if (ragged) memset(filled, 0, 4 * w->strip_rows * w->columns * width);
  for (i64 image = piece * w->batch / w->pieces; image < (piece + 1) * w->batch / w->pieces; image++)
    for (i64 first = 0; first < w->rows; first += w->strip_rows) {
      i64 count = least(w->strip_rows, w->rows - first);
      fill_strip(w, w->x + image * w->height * w->width * w->channels, first, count, strip);
      const float *gradient = w->gradient + (image * w->rows + first) * w->columns * w->outputs;
      if (ragged) {
        for (i64 n = 0; n < count * w->columns; n++) memcpy(filled + n * width, gradient + n * w->outputs, 4 * w->outputs);
        gradient = filled;
      }
      i64 gradient_width = ragged ? width : w->outputs;
      for (i64 i = 0; i < w->tall; i++)
        for (i64 j = 0; j < w->wide; j++)
          for (i64 b = 0; b < w->blocks; b++) {
            i64 channels = least(BLOCK, w->channels - b * BLOCK), tiles = parts(channels, most_channels);
            const float *x = strip + tap(w, i, j) + b * w->phases_width * BLOCK;
            float *rows = total + ((i * w->wide + j) * w->channels + b * BLOCK) * width;
            for (i64 t = 0; t < tiles; t++) {
              i64 c = t * channels / tiles, n = (t + 1) * channels / tiles - c;
              for (i64 g = first_group; g < last_group; g++) {
                const float *from = gradient + g * w->group;
                float *to = rows + c * width + g * w->group;
                if (vectors == 1) correlate_1(n, count, w->columns, x + c, w->row * w->down, from, gradient_width, to, width);
                else if (vectors == 2) correlate_2(n, count, w->columns, x + c, w->row * w->down, from, gradient_width, to, width);
                else correlate_4(n, count, w->columns, x + c, w->row * w->down, from, gradient_width, to, width);
              }
            }
          }
    }
}

static void add_pieces(const Work *w, i64 line) {
  i64 width = w->groups * w->group, channels = w->channels;
  for (i64 n = line * channels; n < (line + 1) * channels; n++) {
    float *to = w->result + n * w->outputs;
    memcpy(to, w->packed + n * width, 4 * w->outputs);
    for (i64 p = 1; p < w->pieces; p++) {
      const float *from = w->packed + p * w->piece_floats + n * width;
      for (i64 o = 0; o < w->outputs; o++) to[o] += from[o];
    }
  }
}

// ---- XLA's side ----

static int describes_itself(XLA_FFI_CallFrame *frame) {
  if (!frame->extension_start || frame->extension_start->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *found = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
  found->api_version.major_version = XLA_FFI_API_MAJOR;
  found->api_version.minor_version = XLA_FFI_API_MINOR;
  found->traits = 0;
  return 1;
}

INLINE const XLA_FFI_Buffer *operand(XLA_FFI_CallFrame *frame, int n) { return frame->args.args[n]; }

static Work describe(XLA_FFI_CallFrame *frame, const int64_t *image, const int64_t *kernel, const int64_t *result) {
  const int64_t *window = ((XLA_FFI_Array *)frame->attrs.attrs[0])->data;
  Work w = {.batch = image[0], .height = image[1], .width = image[2], .channels = image[3],
            .tall = kernel[0], .wide = kernel[1], .rows = result[1], .columns = result[2], .outputs = result[3],
            .down = window[0], .right = window[1], .top = window[2], .left = window[3]};
  w.blocks = parts(w.channels, BLOCK);
  w.phases_width = w.columns + parts(w.wide, w.right) - 1;
  w.row = w.right * w.blocks * w.phases_width * BLOCK;
  i64 lines = STRIP / w.row;
  w.strip_rows = least(w.rows, most(1, (lines - w.tall) / w.down + 1));
  w.strips = parts(w.rows, w.strip_rows);
  w.strip_rows = parts(w.rows, w.strips);
  i64 vectors = w.outputs <= LANES ? 1 : w.outputs <= 2 * LANES || w.columns > 6 ? 2 : 4;
  w.group = vectors * LANES;
  w.groups = parts(w.outputs, w.group);
  return w;
}

// Operands: image, kernel. Result: convolution. Attribute: {stride down, stride right, padding above, padding left}.
XLA_FFI_Error *convolution(XLA_FFI_CallFrame *frame) {
  if (describes_itself(frame)) return NULL;
  const XLA_FFI_Buffer *x = operand(frame, 0), *kernel = operand(frame, 1), *y = frame->rets.rets[0];
  Work w = describe(frame, x->dims, kernel->dims, y->dims);
  w.x = x->data, w.kernel = kernel->data, w.result = y->data;
  w.packed = allocate(w.groups * w.group * w.tall * w.wide * w.channels);
  run_tasks(frame, pack_group, &w, w.groups);
  run_tasks(frame, convolve_strip, &w, w.batch * w.strips);
  free(w.packed);
  return NULL;
}

// Operands: image, gradient of the convolution. Result: gradient of the kernel. Attribute as above.
XLA_FFI_Error *kernel_gradient(XLA_FFI_CallFrame *frame) {
  if (describes_itself(frame)) return NULL;
  const XLA_FFI_Buffer *x = operand(frame, 0), *gradient = operand(frame, 1), *kernel = frame->rets.rets[0];
  Work w = describe(frame, x->dims, kernel->dims, gradient->dims);
  i64 vectors = w.outputs <= LANES ? 1 : w.channels <= 6 && w.outputs > 2 * LANES ? 4 : 2;
  w.group = vectors * LANES;
  w.groups = parts(w.outputs, w.group);
  w.x = x->data, w.gradient = gradient->data, w.result = kernel->data;
  w.piece_floats = w.tall * w.wide * w.channels * w.groups * w.group;
  w.pieces = most(1, least(least(w.batch, 8), (4 << 20) / w.piece_floats));
  w.slices = least(w.groups, parts(8, w.pieces));
  w.packed = allocate(w.pieces * w.piece_floats);
  run_tasks(frame, correlate_piece, &w, w.pieces * w.slices);
  run_tasks(frame, add_pieces, &w, w.tall * w.wide);
  free(w.packed);
  return NULL;
}

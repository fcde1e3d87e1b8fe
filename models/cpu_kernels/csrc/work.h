// Shared by all kernels: vectors and the description of a convolution.

#include <math.h>

#if defined(__AVX512F__)
#define LANES 16
#define TILE 24  // Number of vector registers for results; the others are for operands.
#elif defined(__AVX2__)
#define LANES 8
#define TILE 12
#else
#define LANES 4
#define TILE 24
#endif
#define BLOCK 16  // Channels per block of packed inputs.
#define SHARES 32  // Parts of the pixels with separate sums, so that the order of summation is independent of threads.

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

INLINE i64 min(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 max(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
INLINE vector broadcast(float x) { return x - (vector){}; }

typedef struct {
  i64 batch, height, width, channels;  // Shape of the images; the first `channels` channels are convolved.
  i64 pixel;                           // Floats between neighboring pixels of an image, at least `channels`.
  i64 rows, columns, outputs;          // Size and channels of the result, or of its gradient.
  i64 tall, wide;                      // Height and width of the kernel.
  i64 down, right, top, left;          // Vertical and horizontal stride; padding above and to the left.
  i64 blocks;                          // Number of blocks of channels.
  i64 group, groups;                   // Output channels per group (those of a register tile); number of groups.
  const float *x, *kernel, *gradient;
  const float *scale, *shift;          // Per channel: max(0, scale x + shift) is convolved. NULL: x itself.
  float *result;
} Work;

INLINE void set_groups(Work *w, i64 vectors) {
  w->group = vectors * LANES;
  w->groups = ceil_div(w->outputs, w->group);
}

// Loads a vector: `valid` floats at `from`, then zeros.
INLINE vector load(const float *from, i64 valid) {
  if (valid >= LANES) return *(const vector *)from;
  vector loaded = {};
  for (i64 n = 0; n < valid; n++) loaded[n] = from[n];
  return loaded;
}

INLINE void store(float *to, vector x, i64 valid) {
  if (valid >= LANES) *(vector *)to = x;
  else for (i64 n = 0; n < valid; n++) to[n] = x[n];
}

// The input of the convolution: the channels of a pixel, starting at `c`.
INLINE vector input(const Work *w, const float *pixel, i64 c) {
  i64 valid = w->channels - c;
  vector x = load(pixel + c, valid);
  if (!w->scale) return x;
  vector value = x * load(w->scale + c, valid) + load(w->shift + c, valid);
  return (vector)((bits)value & ~(bits)(value < 0));  // NaN stays NaN; elementwise_max would make it 0.
}

// The inner loops. A tile of results is kept in vector registers while its products are summed. Every address is a
// pointer plus a constant, because neighboring positions of a block of 16 channels are 16 floats apart.

// The taps of a window over packed rows [phase][block][position][16]. A phase is the set of columns that a tap reads,
// for example every second column for stride 2.
typedef struct {
  i64 tall, wide, channels;
  i64 row, phase, block;  // Floats between rows, phases and blocks of channels.
  i64 right;              // Horizontal stride.
} Taps;

INLINE i64 tap(const Taps *taps, i64 i, i64 j) {
  return i * taps->row + j % taps->right * taps->phase + j / taps->right * BLOCK;
}

// Computes `places` neighboring positions of `vectors` vectors of output channels, and stores the first `valid`
// channels. With `accumulate`, the products are added to the stored values. The kernel is packed: [tap,
// channel][vectors].
INLINE void multiply(const int places, const int vectors, const Taps *taps, const float *image, const float *kernel,
                     float *to, i64 width, i64 valid, i64 accumulate) {
  vector sum[TILE] = {};
  if (accumulate) {
#pragma clang loop unroll(full)
    for (int p = 0; p < places; p++)
      for (int v = 0; v < vectors; v++) sum[p * vectors + v] = load(to + p * width + v * LANES, valid - v * LANES);
  }
  for (i64 i = 0; i < taps->tall; i++)
    for (i64 j = 0; j < taps->wide; j++) {
      const float *x = image + tap(taps, i, j);
      for (i64 left = taps->channels; left > 0; left -= BLOCK, x += taps->block) {
        i64 count = min(left, BLOCK);
        for (i64 c = 0; c < count; c++, kernel += vectors * LANES) {
          vector k[4];
          for (int v = 0; v < vectors; v++) k[v] = *(const vector *)(kernel + v * LANES);
#pragma clang loop unroll(full)
          for (int p = 0; p < places; p++)
            for (int v = 0; v < vectors; v++) sum[p * vectors + v] += broadcast(x[p * BLOCK + c]) * k[v];
        }
      }
    }
#pragma clang loop unroll(full)
  for (int p = 0; p < places; p++, to += width) {
    if (valid >= vectors * LANES) {
      for (int v = 0; v < vectors; v++) *(vector *)(to + v * LANES) = sum[p * vectors + v];
    } else {
      float all[4 * LANES];
      for (int v = 0; v < vectors; v++) *(vector *)(all + v * LANES) = sum[p * vectors + v];
      memcpy(to, all, 4 * valid);
    }
  }
}

// Adds to `total` [channels][width] the sums, over `rows` rows of `columns` positions, of the products of `channels`
// input channels and `vectors` vectors of output channels.
INLINE void correlate(const int channels, const int vectors, i64 rows, i64 columns, const float *image, i64 image_row,
                      const float *gradient, i64 width, float *total, i64 total_width) {
  vector sum[TILE];
#pragma clang loop unroll(full)
  for (int c = 0; c < channels; c++)
    for (int v = 0; v < vectors; v++) sum[c * vectors + v] = *(vector *)(total + c * total_width + v * LANES);
  for (i64 r = 0; r < rows; r++) {
    const float *x = image + r * image_row, *g = gradient + r * columns * width;
    for (i64 n = 0; n < columns; n++, x += BLOCK, g += width) {
      vector k[4];
      for (int v = 0; v < vectors; v++) k[v] = *(const vector *)(g + v * LANES);
#pragma clang loop unroll(full)
      for (int c = 0; c < channels; c++)
        for (int v = 0; v < vectors; v++) sum[c * vectors + v] += broadcast(x[c]) * k[v];
    }
  }
#pragma clang loop unroll(full)
  for (int c = 0; c < channels; c++)
    for (int v = 0; v < vectors; v++) *(vector *)(total + c * total_width + v * LANES) = sum[c * vectors + v];
}

// One function per number of vectors, with one case for each number of positions or channels that fit into registers.
#define THREE(CASE, V) CASE(1, V) CASE(2, V) CASE(3, V)
#define SIX(CASE, V) THREE(CASE, V) CASE(4, V) CASE(5, V) CASE(6, V)
#define TWELVE(CASE, V) SIX(CASE, V) CASE(7, V) CASE(8, V) CASE(9, V) CASE(10, V) CASE(11, V) CASE(12, V)
#define SIXTEEN(CASE, V) TWELVE(CASE, V) CASE(13, V) CASE(14, V) CASE(15, V) CASE(16, V)
#define ALL(CASE, V) SIXTEEN(CASE, V) CASE(17, V) CASE(18, V) CASE(19, V) CASE(20, V) CASE(21, V) CASE(22, V) \
  CASE(23, V) CASE(24, V)
#define MULTIPLY(N, V) case N: multiply(N, V, taps, image, kernel, to, width, valid, accumulate); break;
#define CORRELATE(N, V) \
  case N: correlate(N, V, rows, columns, image, image_row, gradient, width, total, total_width); break;
#define FUNCTIONS(V, PLACES, CHANNELS) \
  static void multiply_##V(i64 places, const Taps *taps, const float *image, const float *kernel, float *to, \
                           i64 width, i64 valid, i64 accumulate) { \
    switch (places) { PLACES(MULTIPLY, V) } \
  } \
  static void correlate_##V(i64 channels, i64 rows, i64 columns, const float *image, i64 image_row, \
                            const float *gradient, i64 width, float *total, i64 total_width) { \
    switch (channels) { CHANNELS(CORRELATE, V) } \
  }
#if TILE == 24
FUNCTIONS(1, ALL, SIXTEEN)
FUNCTIONS(2, TWELVE, TWELVE)
FUNCTIONS(4, SIX, SIX)
#else
FUNCTIONS(1, TWELVE, TWELVE)
FUNCTIONS(2, SIX, SIX)
FUNCTIONS(4, THREE, THREE)
#endif

// `multiply` for one group of output channels and any number of positions.
static void multiply_row(i64 vectors, i64 places, const Taps *taps, const float *image, const float *kernel, float *to,
                         i64 width, i64 valid) {
  i64 tiles = ceil_div(places, TILE / vectors);  // Tiles have nearly equal sizes.
  for (i64 t = 0; t < tiles; t++) {
    i64 first = t * places / tiles, count = (t + 1) * places / tiles - first;
    const float *x = image + first * BLOCK;
    float *y = to + first * width;
    if (vectors == 1) multiply_1(count, taps, x, kernel, y, width, valid, 0);
    else if (vectors == 2) multiply_2(count, taps, x, kernel, y, width, valid, 0);
    else multiply_4(count, taps, x, kernel, y, width, valid, 0);
  }
}

// `correlate` for a block of at most 16 input channels and `groups` groups of output channels.
static void correlate_block(i64 vectors, i64 channels, i64 groups, i64 rows, i64 columns, const float *image,
                            i64 image_row, const float *gradient, i64 width, float *total, i64 total_width) {
  i64 tiles = ceil_div(channels, min(BLOCK, TILE / vectors));
  for (i64 t = 0; t < tiles; t++) {
    i64 first = t * channels / tiles, count = (t + 1) * channels / tiles - first;
    for (i64 g = 0; g < groups; g++) {
      const float *x = image + first, *from = gradient + g * vectors * LANES;
      float *to = total + first * total_width + g * vectors * LANES;
      if (vectors == 1) correlate_1(count, rows, columns, x, image_row, from, width, to, total_width);
      else if (vectors == 2) correlate_2(count, rows, columns, x, image_row, from, width, to, total_width);
      else correlate_4(count, rows, columns, x, image_row, from, width, to, total_width);
    }
  }
}

// Batch norm in training, with the addition of a shortcut and ReLU or leaky ReLU, and its gradient. Each function makes
// one pass over memory. Arrays are [pixels][channels].
//
//   y = f((x - mean) a + bias + shortcut), with a = scale / sqrt(variance + epsilon), f(v) = v > 0 ? v : slope v

typedef struct {
  i64 pixels, channels;
  const float *x, *gradient, *shortcut, *y;  // The last two may be NULL.
  float *result, *masked;                    // `masked` may be NULL.
  float *mean, *a, *bias;                    // [channels, padded]
  float *sums;                               // [share][2][channels, padded]
  float *constant, *linear;                  // [channels, padded]; see batch_norm_gradient.
  float slope;
} BatchNorm;

typedef enum { FORWARD = 1, SUMS, GRADIENT } Part;  // What a call computes.

// x where `kept` is set, and slope x elsewhere.
INLINE vector scale_others(vector x, bits kept, float slope) {
  vector other = slope * x;
  if (slope == 0) other = (vector){};  // 0 times infinity is not 0.
  return (vector)(((bits)x & kept) | ((bits)other & ~kept));
}

// Sums over one share, for `vectors` vectors of channels starting at c: the sums of x and x^2, or of the masked
// gradient and its product with x - mean.
INLINE void add_columns(const BatchNorm *n, i64 share, i64 c, const int vectors, const int backward) {
  i64 width = n->channels, filled = ceil_div(width, LANES) * LANES;
  vector first[4] = {}, second[4] = {}, mean[4], a[4], bias[4];
  if (backward)
    for (int v = 0; v < vectors; v++) {
      mean[v] = *(const vector *)(n->mean + c + v * LANES), a[v] = *(const vector *)(n->a + c + v * LANES);
      bias[v] = *(const vector *)(n->bias + c + v * LANES);
    }
  for (i64 p = share * n->pixels / SHARES; p < (share + 1) * n->pixels / SHARES; p++)
    for (int v = 0; v < vectors; v++) {
      i64 at = p * width + c + v * LANES, valid = width - c - v * LANES;
      vector x = load(n->x + at, valid);
      if (!backward) {
        first[v] += x, second[v] += x * x;
        continue;
      }
      vector g = load(n->gradient + at, valid), centred = x - mean[v];
      if (n->slope != 1) {
        vector sign = centred * a[v] + bias[v];
        if (n->y) sign = load(n->y + at, valid);
        g = scale_others(g, (bits)(sign > 0), n->slope);
      }
      if (n->masked) store(n->masked + at, g, valid);
      first[v] += g, second[v] += g * centred;
    }
  float *to = n->sums + share * 2 * filled + c;
  for (int v = 0; v < vectors; v++) {
    *(vector *)(to + v * LANES) = first[v];
    *(vector *)(to + filled + v * LANES) = second[v];
  }
}

#define COLUMN_LOOP(ADD, BACKWARD) \
  const BatchNorm *n = data; \
  i64 c = 0; \
  for (; c + 4 * LANES <= n->channels; c += 4 * LANES) ADD(n, share, c, 4, BACKWARD); \
  for (; c < n->channels; c += LANES) ADD(n, share, c, 1, BACKWARD);

static void add_moments(const void *data, i64 share, float *memory) { COLUMN_LOOP(add_columns, 0) }
static void add_gradients(const void *data, i64 share, float *memory) { COLUMN_LOOP(add_columns, 1) }

// The result of one share for some channels: y, or the gradient of x, which is a g + linear (x - mean) + constant.
INLINE void write_columns(const BatchNorm *n, i64 share, i64 c, const int vectors, const int backward) {
  i64 width = n->channels;
  vector mean[4], a[4], bias[4], linear[4], constant[4];
  for (int v = 0; v < vectors; v++) {
    i64 at = c + v * LANES;
    mean[v] = *(const vector *)(n->mean + at), a[v] = *(const vector *)(n->a + at);
    bias[v] = *(const vector *)(n->bias + at);
    if (backward) linear[v] = *(const vector *)(n->linear + at), constant[v] = *(const vector *)(n->constant + at);
  }
  for (i64 p = share * n->pixels / SHARES; p < (share + 1) * n->pixels / SHARES; p++)
    for (int v = 0; v < vectors; v++) {
      i64 at = p * width + c + v * LANES, valid = width - c - v * LANES;
      vector centred = load(n->x + at, valid) - mean[v], y = centred * a[v] + bias[v];
      if (backward) {
        vector g = load(n->gradient + at, valid);
        if (n->slope != 1) g = scale_others(g, (bits)(y > 0), n->slope);
        store(n->result + at, g * a[v] + (centred * linear[v] + constant[v]), valid);
      } else {
        if (n->shortcut) y += load(n->shortcut + at, valid);
        if (n->slope != 1) y = scale_others(y, ~(bits)(y < 0), n->slope);  // NaN stays NaN.
        store(n->result + at, y, valid);
      }
    }
}

static void write_normalized(const void *data, i64 share, float *memory) { COLUMN_LOOP(write_columns, 0) }
static void write_gradient(const void *data, i64 share, float *memory) { COLUMN_LOOP(write_columns, 1) }

// Runs `add` on all shares and writes the two sums, times `factor`, to `to` [2][channels].
static XLA_FFI_Error *sum_shares(XLA_FFI_CallFrame *frame, BatchNorm *n, Task *add, float factor, float *to) {
  i64 filled = ceil_div(n->channels, LANES) * LANES;
  n->sums = allocate(SHARES * 2 * filled);
  if (!n->sums) return out_of_memory(frame, SHARES * 2 * filled);
  XLA_FFI_Error *error = run_tasks(frame, add, n, SHARES, 0);
  for (i64 half = 0; half < 2 && !error; half++)
    for (i64 c = 0; c < n->channels; c++) {
      float total = 0;
      for (i64 share = 0; share < SHARES; share++) total += n->sums[(share * 2 + half) * filled + c];
      to[half * n->channels + c] = total * factor;
    }
  free(n->sums);
  return error;
}

// Allocates and fills mean, a and bias from the moments (mean and mean of squares) [2][channels]. For the gradient of
// x, also fills `linear` and `constant` from the means [2][channels] of the gradient and of its product with x - mean.
static XLA_FFI_Error *describe_norm(XLA_FFI_CallFrame *frame, BatchNorm *n, const float *moments, const float *scale,
                                    const float *bias, const float *means, float epsilon) {
  i64 filled = ceil_div(n->channels, LANES) * LANES;
  n->mean = allocate(5 * filled);
  if (!n->mean) return out_of_memory(frame, 5 * filled);
  memset(n->mean, 0, 4 * 5 * filled);
  n->a = n->mean + filled, n->bias = n->a + filled, n->linear = n->bias + filled, n->constant = n->linear + filled;
  for (i64 c = 0; c < n->channels; c++) {
    float mean = moments[c], variance = moments[n->channels + c] - mean * mean;
    if (variance < 0) variance = 0;  // From rounding. NaN stays NaN.
    n->mean[c] = mean, n->bias[c] = bias[c], n->a[c] = scale[c] / sqrtf(variance + epsilon);
    if (!means) continue;
    n->constant[c] = -n->a[c] * means[c];
    n->linear[c] = -n->a[c] * means[n->channels + c] / (variance + epsilon);
  }
  return NULL;
}

// The exported functions, called by XLA. All arrays are float32; images are [B, H, W, C], kernels [h, w, C, O].

// clang-format off
#include "frame.h"
#include "threads.h"
#include "work.h"
#include "tiles.h"
#include "direct.h"
#include "winograd.h"
#include "affine_relu.h"
#include "batch_norm.h"
#include "pooling.h"
#include "product.h"

// Upper bounds that keep all sizes from overflowing.
#define LIMIT (1 << 20)          // For strides and padding.
#define MOST_FLOATS (1LL << 36)  // For the floats of a strip.
#define SIDES (1 << 12)          // For the side of a pooling window.

// Returns the first result, initialized with the `floats` floats of the first operand. XLA may have aliased the two.
static float *accumulated(XLA_FFI_CallFrame *frame, i64 floats) {
  float *to = result(frame, 0)->data;
  if (to != operand(frame, 0)->data) memcpy(to, operand(frame, 0)->data, 4 * floats);
  return to;
}

static XLA_FFI_Error *check_padding(XLA_FFI_CallFrame *frame, const char *signature, i64 top, i64 left) {
  if (min(top, left) >= -LIMIT && max(top, left) <= LIMIT) return NULL;
  return failure(frame, signature, INVALID, "padding must be between -%d and %d, not %lld and %lld", LIMIT, LIMIT,
                 (long long)top, (long long)left);
}

// Fills `w` with the description of a convolution, from the sizes of its arrays and its attribute.
static XLA_FFI_Error *describe(XLA_FFI_CallFrame *frame, const Sizes *sizes, Work *w) {
  const i64 *size = sizes->of, *window = NULL;
  XLA_FFI_Error *error = read_integers(frame, sizes, "window", 4, &window);
  if (error) return error;
  const float *scale = frame->args.size == 3 ? operand(frame, 2)->data : NULL;
  *w = (Work){.batch = size['B'], .height = size['H'], .width = size['W'], .channels = size['C'], .pixel = size['P'],
              .scale = scale, .shift = scale ? scale + size['C'] : NULL,
              .blocks = ceil_div(size['C'], BLOCK), .tall = size['h'], .wide = size['w'],
              .rows = size['I'], .columns = size['J'], .outputs = size['O'],
              .down = window[0], .right = window[1], .top = window[2], .left = window[3]};
  if (min(w->down, w->right) < 1 || max(w->down, w->right) > LIMIT)
    return failure(frame, sizes->signature, INVALID, "strides must be between 1 and %d, not %lld and %lld", LIMIT,
                   (long long)w->down, (long long)w->right);
  error = check_padding(frame, sizes->signature, w->top, w->left);
  if (error) return error;
  double strip = (double)w->tall * w->right * w->blocks * BLOCK * (w->columns + w->wide);
  if (strip > MOST_FLOATS)
    return failure(frame, sizes->signature, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED,
                   "the padded input rows of one output row have %.0f floats, more than %lld", strip, MOST_FLOATS);
  if (!scale && size['C'] != size['P'])
    return failure(frame, sizes->signature, INVALID,
                   "the images have %lld channels and the kernel %lld; they may differ only with affine",
                   (long long)size['P'], (long long)size['C']);
  return NULL;
}

// Whether Winograd's algorithm saves enough products to outweigh its transforms. The thresholds were measured.
static int winograd_pays(const Work *w) {
  if (w->down != 1 || w->right != 1 || w->tall < 3 || w->wide < 3) return 0;
  i64 tiles = ceil_div(w->rows, STEP) * ceil_div(w->columns, STEP);
  i64 shifts = ceil_div(w->tall, 3) * ceil_div(w->wide, 3);
  i64 products = tiles * shifts * PLACES, plain = w->rows * w->columns * w->tall * w->wide;
  return 10 * plain >= 17 * products && w->channels >= 16 && w->outputs >= 12 &&
         2 * w->batch * tiles >= max(w->channels, w->outputs);
}

// The convolution of images x with a kernel, or of max(0, scale x + shift) if scale and shift are given as `affine`.
// Attribute: window, {vertical stride, horizontal stride, padding above, padding to the left}.
XLA_FFI_Error *convolution(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  Work w;
  XLA_FFI_Error *error = check_arrays(
      frame, "convolution(images[B,H,W,P], kernel[h,w,C,O], affine[2,C]?) -> convolved[B,I,J,O]", &sizes);
  if (!error) error = describe(frame, &sizes, &w);
  if (error) return error;
  w.x = operand(frame, 0)->data, w.kernel = operand(frame, 1)->data, w.result = result(frame, 0)->data;
  return (winograd_pays(&w) ? convolve_by_winograd : convolve_directly)(frame, &w);
}

// The gradient of the convolution's kernel. Attribute: as for `convolution`.
XLA_FFI_Error *kernel_gradient(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  Work w;
  XLA_FFI_Error *error = check_arrays(
      frame, "kernel_gradient(images[B,H,W,P], gradient[B,I,J,O], affine[2,C]?) -> kernel[h,w,C,O]", &sizes);
  if (!error) error = describe(frame, &sizes, &w);
  if (error) return error;
  w.x = operand(frame, 0)->data, w.gradient = operand(frame, 1)->data, w.result = result(frame, 0)->data;
  return (winograd_pays(&w) ? correlate_by_winograd : correlate_directly)(frame, &w);
}

// Batch norm in the form a x + b, from its parameters and the mean and variance of a batch. Attribute: epsilon.
XLA_FFI_Error *affine(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  float epsilon;
  XLA_FFI_Error *error = check_arrays(frame, "affine(scale[C], bias[C], statistics[2,P]) -> affine[2,C]", &sizes);
  if (!error) error = read_number(frame, &sizes, "epsilon", &epsilon);
  if (error) return error;
  const float *scale = operand(frame, 0)->data, *bias = operand(frame, 1)->data, *mean = operand(frame, 2)->data;
  const float *variance = mean + sizes.of['P'];
  float *a = result(frame, 0)->data, *b = a + sizes.of['C'];
  for (i64 c = 0; c < sizes.of['C']; c++) {
    a[c] = scale[c] / sqrtf(variance[c] + epsilon);
    b[c] = bias[c] - mean[c] * a[c];
  }
  return NULL;
}

// The gradient of `affine`. Results: total, in place, with the gradient of mean and variance added to its first C
// channels; the gradient of scale and bias. Attribute: epsilon.
XLA_FFI_Error *affine_gradient(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  float epsilon;
  XLA_FFI_Error *error = check_arrays(
      frame, "affine_gradient(total[2,P], gradient[2,C], scale[C], statistics[2,P]) -> total[2,P], norm[2,C]", &sizes);
  if (!error) error = read_number(frame, &sizes, "epsilon", &epsilon);
  if (error) return error;
  const float *of_a = operand(frame, 1)->data, *scale = operand(frame, 2)->data, *mean = operand(frame, 3)->data;
  i64 channels = sizes.of['C'], width = sizes.of['P'];
  const float *of_b = of_a + channels;
  float *total = accumulated(frame, 2 * width), *of_norm = result(frame, 1)->data;
  for (i64 c = 0; c < channels; c++) {
    float inverse = 1 / sqrtf(mean[width + c] + epsilon), whole = of_a[c] - of_b[c] * mean[c];
    of_norm[c] = whole * inverse;
    of_norm[channels + c] = of_b[c];
    total[c] -= of_b[c] * scale[c] * inverse;
    total[width + c] -= 0.5f * whole * scale[c] * inverse * inverse * inverse;
  }
  return NULL;
}

// Batch norm's running mean and variance after one more batch. Attribute: momentum, the decay of the old values.
XLA_FFI_Error *update_running_stats(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  float momentum;
  XLA_FFI_Error *error = check_arrays(
      frame, "update_running_stats(mean[C], variance[C], statistics[2,P]) -> mean[C], variance[C]", &sizes);
  if (!error) error = read_number(frame, &sizes, "momentum", &momentum);
  if (error) return error;
  for (int n = 0; n < 2; n++) {
    const float *old = operand(frame, n)->data, *new = (const float *)operand(frame, 2)->data + n * sizes.of['P'];
    float *to = result(frame, n)->data;
    for (i64 c = 0; c < sizes.of['C']; c++) to[c] = momentum * old[c] + (1 - momentum) * new[c];
  }
  return NULL;
}

// The gradient of max(0, scale x + shift), with scale and shift in `affine`. Results: total, in place, with the
// gradient of x added to the first C channels; the gradient of scale and shift.
XLA_FFI_Error *affine_relu_gradient(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  XLA_FFI_Error *error = check_arrays(
      frame,
      "affine_relu_gradient(total[B,H,W,P], gradient[B,H,W,C], x[B,H,W,P], affine[2,C]) -> total[B,H,W,P], affine[2,C]",
      &sizes);
  if (error) return error;
  i64 pixels = sizes.of['B'] * sizes.of['H'] * sizes.of['W'], width = sizes.of['P'], channels = sizes.of['C'];
  const float *scale = operand(frame, 3)->data;
  float *d_scale = result(frame, 1)->data;
  AffineRelu n = {.pixels = pixels, .width = width, .channels = channels, .total = accumulated(frame, pixels * width),
                  .x = operand(frame, 2)->data, .gradient = operand(frame, 1)->data, .scale = scale,
                  .shift = scale + channels};
  return add_affine_relu_gradient(frame, &n, d_scale, d_scale + channels);
}

// ---- Batch norm in training, with a shortcut and (leaky) ReLU ----

// Mean and mean of squares of each channel.
XLA_FFI_Error *batch_moments(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  XLA_FFI_Error *error = check_arrays(frame, "batch_moments(x[N,C]) -> moments[2,C]", &sizes);
  if (error) return error;
  BatchNorm n = {.pixels = sizes.of['N'], .channels = sizes.of['C'], .x = operand(frame, 0)->data};
  return sum_shares(frame, &n, add_moments, 1.0f / n.pixels, result(frame, 0)->data);
}

// Runs batch_norm, batch_norm_sums or batch_norm_gradient. Operand `first` is x, followed by moments, scale, bias, and,
// depending on `part`, shortcut, y or means.
static XLA_FFI_Error *run_norm(XLA_FFI_CallFrame *frame, const char *signature, Part part) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  float epsilon, slope;
  XLA_FFI_Error *error = check_arrays(frame, signature, &sizes);
  if (!error) error = read_number(frame, &sizes, "epsilon", &epsilon);
  if (!error) error = read_number(frame, &sizes, "slope", &slope);
  if (error) return error;
  int first = part != FORWARD;
  const float *last = frame->args.size == first + 5 ? operand(frame, first + 4)->data : NULL;
  BatchNorm n = {.pixels = sizes.of['N'], .channels = sizes.of['C'], .slope = slope, .x = operand(frame, first)->data,
                 .gradient = first ? operand(frame, 0)->data : NULL, .shortcut = part == FORWARD ? last : NULL,
                 .y = part == SUMS ? last : NULL, .result = result(frame, 0)->data,
                 .masked = frame->rets.size == 2 ? result(frame, 1)->data : NULL};
  error = describe_norm(frame, &n, operand(frame, first + 1)->data, operand(frame, first + 2)->data,
                        operand(frame, first + 3)->data, part == GRADIENT ? last : NULL, epsilon);
  if (error) return error;
  if (part == SUMS) error = sum_shares(frame, &n, add_gradients, 1.0f / n.pixels, n.result);
  else error = run_tasks(frame, part == FORWARD ? write_normalized : write_gradient, &n, SHARES, 0);
  free(n.mean);
  return error;
}

// Attributes: epsilon; slope, the negative slope of f (1: f is the identity).
XLA_FFI_Error *batch_norm(XLA_FFI_CallFrame *frame) {
  return run_norm(frame, "batch_norm(x[N,C], moments[2,C], scale[C], bias[C], shortcut[N,C]?) -> y[N,C]", FORWARD);
}

// The means of the gradient before f and of its product with x - mean. With a shortcut, y must be given, and the
// gradient before f, which is the shortcut's gradient, is a second result. Attributes: as for `batch_norm`.
XLA_FFI_Error *batch_norm_sums(XLA_FFI_CallFrame *frame) {
  return run_norm(
      frame,
      "batch_norm_sums(gradient[N,C], x[N,C], moments[2,C], scale[C], bias[C], y[N,C]?) -> means[2,C], masked[N,C]?",
      SUMS);
}

// The gradient of x, from the means over the batch on all devices. With slope 1, `gradient` is the gradient before f.
// Attributes: as for `batch_norm`.
XLA_FFI_Error *batch_norm_gradient(XLA_FFI_CallFrame *frame) {
  return run_norm(
      frame,
      "batch_norm_gradient(gradient[N,C], x[N,C], moments[2,C], scale[C], bias[C], means[2,C]) -> x_gradient[N,C]",
      GRADIENT);
}

// ---- Max pooling ----

static XLA_FFI_Error *run_pooling(XLA_FFI_CallFrame *frame, const char *signature, int backward) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  const i64 *size = sizes.of, *window = NULL;
  XLA_FFI_Error *error = check_arrays(frame, signature, &sizes);
  if (!error) error = read_integers(frame, &sizes, "window", 4, &window);
  if (error) return error;
  Pooling p = {.batch = size['B'], .height = size['H'], .width = size['W'], .channels = size['C'], .rows = size['I'],
               .columns = size['J'], .side = window[0], .stride = window[1], .above = window[2], .before = window[3],
               .x = operand(frame, 0)->data, .gradient = backward ? operand(frame, 1)->data : NULL,
               .result = result(frame, 0)->data};
  if (min(p.side, p.stride) < 1 || p.side > SIDES || p.stride > LIMIT)
    return failure(frame, signature, INVALID, "the side must be between 1 and %d, and the stride between 1 and %d, not "
                   "%lld and %lld", SIDES, LIMIT, (long long)p.side, (long long)p.stride);
  error = check_padding(frame, signature, p.above, p.before);
  if (error) return error;
  return backward ? run_pool_gradient(frame, &p) : run_tasks(frame, pool_row, &p, p.batch * p.rows, 0);
}

// The maxima of square windows. Attribute: window, {side, stride, padding above, padding to the left}.
XLA_FFI_Error *max_pool(XLA_FFI_CallFrame *frame) {
  return run_pooling(frame, "max_pool(x[B,H,W,C]) -> maxima[B,I,J,C]", 0);
}

// The gradient of x. Attribute: as for `max_pool`.
XLA_FFI_Error *max_pool_gradient(XLA_FFI_CallFrame *frame) {
  return run_pooling(frame, "max_pool_gradient(x[B,H,W,C], gradient[B,I,J,C]) -> x_gradient[B,H,W,C]", 1);
}

#define RESULT -1
INLINE float *data(XLA_FFI_CallFrame *frame, int n) {
  return (n == RESULT ? result(frame, 0) : operand(frame, n))->data;
}

// One of the products of a dense layer y = x w, with x [B, I] and w [I, O]. `x`, `w` and `y` (or its gradient) are
// operand indices or RESULT.
static XLA_FFI_Error *dense(XLA_FFI_CallFrame *frame, XLA_FFI_Error *run(XLA_FFI_CallFrame *, Product *),
                            const char *signature, int x, int w, int y) {
  if (is_metadata_request(frame)) return NULL;
  Sizes sizes;
  XLA_FFI_Error *error = check_arrays(frame, signature, &sizes);
  if (error) return error;
  Product p = {.rows = sizes.of['B'], .inputs = sizes.of['I'], .outputs = sizes.of['O'],
               .x = data(frame, x), .w = data(frame, w), .y = data(frame, y)};
  return run(frame, &p);
}

XLA_FFI_Error *product(XLA_FFI_CallFrame *frame) {
  return dense(frame, multiply_dense, "product(x[B,I], w[I,O]) -> y[B,O]", 0, 1, RESULT);
}

XLA_FFI_Error *product_gradient(XLA_FFI_CallFrame *frame) {
  return dense(frame, input_gradient_dense, "product_gradient(w[I,O], gradient[B,O]) -> x[B,I]", RESULT, 0, 1);
}

// `after` is not read; it makes this call wait until `after` has been computed.
XLA_FFI_Error *product_kernel_gradient(XLA_FFI_CallFrame *frame) {
  return dense(frame, correlate_dense, "product_kernel_gradient(x[B,I], gradient[B,O], after[B,I]?) -> w[I,O]", 0,
               RESULT, 1);
}

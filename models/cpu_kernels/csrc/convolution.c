// The exported functions, called by XLA. All arrays are float32; images are [B, H, W, C], kernels [h, w, C, O].

// clang-format off
#include "work.h"
#include "tiles.h"
#include "direct.h"
#include "winograd.h"
#include "normalised.h"
#include "product.h"

static int is_metadata_request(XLA_FFI_CallFrame *frame) {
  if (!frame->extension_start || frame->extension_start->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return 1;
}

INLINE const XLA_FFI_Buffer *operand(XLA_FFI_CallFrame *frame, int n) { return frame->args.args[n]; }
INLINE const XLA_FFI_Buffer *result(XLA_FFI_CallFrame *frame, int n) { return frame->rets.rets[n]; }

// The first result, initialized with the first operand, `floats` floats. XLA may or may not have aliased them.
static float *accumulated(XLA_FFI_CallFrame *frame, i64 floats) {
  float *to = result(frame, 0)->data;
  if (to != operand(frame, 0)->data) memcpy(to, operand(frame, 0)->data, 4 * floats);
  return to;
}

// Describes a convolution. The third operand, if there is one, is scale and shift [2][C].
static Work describe(XLA_FFI_CallFrame *frame, const int64_t *image, const int64_t *kernel, const int64_t *result) {
  const int64_t *window = ((XLA_FFI_Array *)frame->attrs.attrs[0])->data;
  const float *scale = frame->args.size == 3 ? operand(frame, 2)->data : NULL;
  return (Work){.batch = image[0], .height = image[1], .width = image[2], .channels = kernel[2], .pixel = image[3],
                .scale = scale, .shift = scale ? scale + kernel[2] : NULL,
                .blocks = ceil_div(kernel[2], BLOCK), .tall = kernel[0], .wide = kernel[1],
                .rows = result[1], .columns = result[2], .outputs = result[3],
                .down = window[0], .right = window[1], .top = window[2], .left = window[3]};
}

// Whether Winograd's algorithm saves enough products to outweigh its transforms. The thresholds were measured.
static int winograd_pays(const Work *w, i64 least_channels) {
  if (w->down != 1 || w->right != 1 || w->tall < 3 || w->wide < 3) return 0;
  i64 tiles = ceil_div(w->rows, STEP) * ceil_div(w->columns, STEP);
  i64 shifts = ceil_div(w->tall, 3) * ceil_div(w->wide, 3);
  i64 products = tiles * shifts * PLACES, plain = w->rows * w->columns * w->tall * w->wide;
  return 10 * plain >= 17 * products && w->channels >= least_channels && w->outputs >= 12 &&
         2 * w->batch * tiles >= max(w->channels, w->outputs);
}

// Operands: images, kernel [h, w, C, O], optionally scale and shift [2, C]. The first C channels of the images are
// used, and max(0, scale x + shift) is convolved. Result: the convolution. Attribute: window, {vertical stride,
// horizontal stride, padding above, padding to the left}.
XLA_FFI_Error *convolution(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  const XLA_FFI_Buffer *x = operand(frame, 0), *kernel = operand(frame, 1), *y = result(frame, 0);
  Work w = describe(frame, x->dims, kernel->dims, y->dims);
  w.x = x->data, w.kernel = kernel->data, w.result = y->data;
  (winograd_pays(&w, 32) ? convolve_by_winograd : convolve_directly)(frame, &w);
  return NULL;
}

// Operands: images, gradient of the convolution, optionally scale and shift [2, C]. Result: gradient of the kernel.
// Attribute: as above.
XLA_FFI_Error *kernel_gradient(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  const XLA_FFI_Buffer *x = operand(frame, 0), *gradient = operand(frame, 1), *kernel = result(frame, 0);
  Work w = describe(frame, x->dims, kernel->dims, gradient->dims);
  w.x = x->data, w.gradient = gradient->data, w.result = kernel->data;
  (winograd_pays(&w, 16) ? correlate_by_winograd : correlate_directly)(frame, &w);
  return NULL;
}

INLINE float number(XLA_FFI_CallFrame *frame) { return *(float *)((XLA_FFI_Scalar *)frame->attrs.attrs[0])->value; }

// Operands: batch norm's scale [C] and bias [C], mean and variance [2, W], of which the first C channels are used.
// Result: a and b [2, C] such that batch norm is a x + b. Attribute: epsilon.
XLA_FFI_Error *affine(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  const float *scale = operand(frame, 0)->data, *bias = operand(frame, 1)->data, *mean = operand(frame, 2)->data;
  i64 channels = operand(frame, 0)->dims[0], width = operand(frame, 2)->dims[1];
  float *a = result(frame, 0)->data, *b = a + channels;
  for (i64 c = 0; c < channels; c++) {
    a[c] = scale[c] / sqrtf(mean[width + c] + number(frame));
    b[c] = bias[c] - mean[c] * a[c];
  }
  return NULL;
}

// The gradient of `affine`. Operands: total [2, W], gradient of a and b [2, C], scale [C], mean and variance [2, W].
// Results: total, in place, with the gradient of mean and variance added to the first C channels; the gradient of scale
// and bias [2, C]. Attribute: epsilon.
XLA_FFI_Error *affine_gradient(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  const float *of_a = operand(frame, 1)->data, *scale = operand(frame, 2)->data, *mean = operand(frame, 3)->data;
  i64 channels = operand(frame, 2)->dims[0], width = operand(frame, 3)->dims[1];
  const float *of_b = of_a + channels;
  float *total = accumulated(frame, 2 * width), *of_norm = result(frame, 1)->data;
  for (i64 c = 0; c < channels; c++) {
    float inverse = 1 / sqrtf(mean[width + c] + number(frame)), whole = of_a[c] - of_b[c] * mean[c];
    of_norm[c] = whole * inverse;
    of_norm[channels + c] = of_b[c];
    total[c] -= of_b[c] * scale[c] * inverse;
    total[width + c] -= 0.5f * whole * scale[c] * inverse * inverse * inverse;
  }
  return NULL;
}

// Operands: batch norm's running mean [C] and variance [C], a batch's mean and variance [2, W], of which the first C
// channels are used. Results: the updated running mean and variance. Attribute: momentum, the decay.
XLA_FFI_Error *update_running_stats(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  i64 channels = operand(frame, 0)->dims[0], width = operand(frame, 2)->dims[1];
  for (int n = 0; n < 2; n++) {
    const float *old = operand(frame, n)->data, *new = (float *)operand(frame, 2)->data + n * width;
    float *to = result(frame, n)->data;
    for (i64 c = 0; c < channels; c++) to[c] = number(frame) * old[c] + (1 - number(frame)) * new[c];
  }
  return NULL;
}

// The gradient of max(0, scale x + shift). Operands: total [B, H, W, W'], gradient [B, H, W, C], x [B, H, W, W'], scale
// and shift [2, C]. Results: total, in place, with the gradient of x added to the first C channels; the gradient of
// scale and shift [2, C].
XLA_FFI_Error *normalised_gradient(XLA_FFI_CallFrame *frame) {
  if (is_metadata_request(frame)) return NULL;
  const XLA_FFI_Buffer *x = operand(frame, 2), *d_both = result(frame, 1);
  const float *scale = operand(frame, 3)->data;
  i64 pixels = x->dims[0] * x->dims[1] * x->dims[2], width = x->dims[3], channels = d_both->dims[1];
  Normalised n = {.pixels = pixels, .width = width, .channels = channels, .total = accumulated(frame, pixels * width),
                  .x = x->data, .gradient = operand(frame, 1)->data, .scale = scale, .shift = scale + channels};
  add_normalised(frame, &n, d_both->data, (float *)d_both->data + channels);
  return NULL;
}

#define RESULT -1
INLINE const XLA_FFI_Buffer *part(XLA_FFI_CallFrame *frame, int n) {
  return n == RESULT ? result(frame, 0) : operand(frame, n);
}

// A product of a dense layer y = x w with x [B, I] and w [I, O]. `x`, `w` and `y` (or its gradient) are indices of
// operands or RESULT.
static XLA_FFI_Error *dense(XLA_FFI_CallFrame *frame, void (*run)(XLA_FFI_CallFrame *, Product *), int x, int w,
                            int y) {
  if (is_metadata_request(frame)) return NULL;
  const XLA_FFI_Buffer *x_BI = part(frame, x), *w_IO = part(frame, w), *y_BO = part(frame, y);
  Product p = {x_BI->dims[0], x_BI->dims[1], w_IO->dims[1], .x = x_BI->data, .w = w_IO->data, .y = y_BO->data};
  run(frame, &p);
  return NULL;
}

XLA_FFI_Error *product(XLA_FFI_CallFrame *frame) { return dense(frame, multiply_dense, 0, 1, RESULT); }
XLA_FFI_Error *product_gradient(XLA_FFI_CallFrame *frame) { return dense(frame, input_gradient_dense, RESULT, 0, 1); }
XLA_FFI_Error *product_kernel_gradient(XLA_FFI_CallFrame *frame) { return dense(frame, correlate_dense, 0, RESULT, 1); }

// Convolution of float32 images [B, H, W, C] by a kernel [h, w, C, O], and its kernel's gradient, for CPUs: XLA's calls.

// clang-format off
#include "work.h"
#include "tiles.h"
#include "direct.h"
#include "winograd.h"
#include "normalised.h"
#include "product.h"

static int describes_itself(XLA_FFI_CallFrame *frame) {
  if (!frame->extension_start || frame->extension_start->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *found = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
  found->api_version.major_version = XLA_FFI_API_MAJOR;
  found->api_version.minor_version = XLA_FFI_API_MINOR;
  found->traits = 0;
  return 1;
}

INLINE const XLA_FFI_Buffer *operand(XLA_FFI_CallFrame *frame, int n) { return frame->args.args[n]; }
INLINE const XLA_FFI_Buffer *result(XLA_FFI_CallFrame *frame, int n) { return frame->rets.rets[n]; }

// The first result, `floats` floats, which goes on from the first operand: XLA need not have given them one memory.
static float *going_on(XLA_FFI_CallFrame *frame, i64 floats) {
  float *to = result(frame, 0)->data;
  if (to != operand(frame, 0)->data) memcpy(to, operand(frame, 0)->data, 4 * floats);
  return to;
}

// The third operand: scale and shift [2][C], or none.
static Work describe(XLA_FFI_CallFrame *frame, const int64_t *image, const int64_t *kernel, const int64_t *result) {
  const int64_t *window = ((XLA_FFI_Array *)frame->attrs.attrs[0])->data;
  const float *scale = frame->args.size == 3 ? operand(frame, 2)->data : NULL;
  return (Work){.batch = image[0], .height = image[1], .width = image[2], .channels = kernel[2], .pixel = image[3],
                .scale = scale, .shift = scale ? scale + kernel[2] : NULL,
                .blocks = parts(kernel[2], BLOCK), .tall = kernel[0], .wide = kernel[1],
                .rows = result[1], .columns = result[2], .outputs = result[3],
                .down = window[0], .right = window[1], .top = window[2], .left = window[3]};
}

// Whether Winograd's products are so much fewer that its transformations pay, as measured.
static int winograd_pays(const Work *w, i64 least_channels) {
  if (w->down != 1 || w->right != 1 || w->tall < 3 || w->wide < 3) return 0;
  i64 tiles = parts(w->rows, STEP) * parts(w->columns, STEP), shifts = parts(w->tall, 3) * parts(w->wide, 3);
  i64 products = tiles * shifts * PLACES, plain = w->rows * w->columns * w->tall * w->wide;
  return 10 * plain >= 17 * products && w->channels >= least_channels && w->outputs >= 12 &&
         2 * w->batch * tiles >= most(w->channels, w->outputs);
}

// Operands: image, kernel, and scale and shift together or neither; the first channels of the image, as many as the
// kernel has, are convolved. Result: convolution. Attribute: {stride down, stride right, padding above, padding left}.
XLA_FFI_Error *convolution(XLA_FFI_CallFrame *frame) {
  if (describes_itself(frame)) return NULL;
  const XLA_FFI_Buffer *x = operand(frame, 0), *kernel = operand(frame, 1), *y = result(frame, 0);
  Work w = describe(frame, x->dims, kernel->dims, y->dims);
  w.x = x->data, w.kernel = kernel->data, w.result = y->data;
  (winograd_pays(&w, 32) ? convolve_by_winograd : convolve_directly)(frame, &w);
  return NULL;
}

// Operands: image, gradient of the convolution, and scale and shift together or neither. Result: gradient of the kernel.
// Attribute as above.
XLA_FFI_Error *kernel_gradient(XLA_FFI_CallFrame *frame) {
  if (describes_itself(frame)) return NULL;
  const XLA_FFI_Buffer *x = operand(frame, 0), *gradient = operand(frame, 1), *kernel = result(frame, 0);
  Work w = describe(frame, x->dims, kernel->dims, gradient->dims);
  w.x = x->data, w.gradient = gradient->data, w.result = kernel->data;
  (winograd_pays(&w, 16) ? correlate_by_winograd : correlate_directly)(frame, &w);
  return NULL;
}

INLINE float number(XLA_FFI_CallFrame *frame) { return *(float *)((XLA_FFI_Scalar *)frame->attrs.attrs[0])->value; }

// Operands: batch norm's scale and bias [C], mean and variance [2, W], of which the first C are meant. Result: a and b
// [2, C], for which batch norm is a x + b. Attribute: epsilon.
XLA_FFI_Error *affine(XLA_FFI_CallFrame *frame) {
  if (describes_itself(frame)) return NULL;
  const float *scale = operand(frame, 0)->data, *bias = operand(frame, 1)->data, *mean = operand(frame, 2)->data;
  i64 channels = operand(frame, 0)->dims[0], width = operand(frame, 2)->dims[1];
  float *a = result(frame, 0)->data, *b = a + channels;
  for (i64 c = 0; c < channels; c++) {
    a[c] = scale[c] / sqrtf(mean[width + c] + number(frame));
    b[c] = bias[c] - mean[c] * a[c];
  }
  return NULL;
}

// Operands: total [2, W], gradient of a and b [2, C], scale [C], mean and variance [2, W]. Results: total, in place, with
// the gradient of mean and variance added to the first C; the gradient of scale and bias [2, C]. Attribute: epsilon.
XLA_FFI_Error *affine_gradient(XLA_FFI_CallFrame *frame) {
  if (describes_itself(frame)) return NULL;
  const float *of_a = operand(frame, 1)->data, *scale = operand(frame, 2)->data, *mean = operand(frame, 3)->data;
  i64 channels = operand(frame, 2)->dims[0], width = operand(frame, 3)->dims[1];
  const float *of_b = of_a + channels;
  float *total = going_on(frame, 2 * width), *of_norm = result(frame, 1)->data;
  for (i64 c = 0; c < channels; c++) {
    float inverse = 1 / sqrtf(mean[width + c] + number(frame)), whole = of_a[c] - of_b[c] * mean[c];
    of_norm[c] = whole * inverse;
    of_norm[channels + c] = of_b[c];
    total[c] -= of_b[c] * scale[c] * inverse;
    total[width + c] -= 0.5f * whole * scale[c] * inverse * inverse * inverse;
  }
  return NULL;
}

// Operands: batch norm's running mean and variance [C], a batch's [2, W], of which the first C are meant. Results: both
// after that batch. Attribute: the share that they keep.
XLA_FFI_Error *update_running_stats(XLA_FFI_CallFrame *frame) {
  if (describes_itself(frame)) return NULL;
  i64 channels = operand(frame, 0)->dims[0], width = operand(frame, 2)->dims[1];
  for (int n = 0; n < 2; n++) {
    const float *old = operand(frame, n)->data, *found = (float *)operand(frame, 2)->data + n * width;
    float *to = result(frame, n)->data;
    for (i64 c = 0; c < channels; c++) to[c] = number(frame) * old[c] + (1 - number(frame)) * found[c];
  }
  return NULL;
}

// Operands: total [B, H, W, width], gradient [B, H, W, C] of max(0, scale x + shift), x like total, scale and shift
// [2, C]. Results: total, in place, with x's gradient added to its first C channels; the gradient of scale and shift.
XLA_FFI_Error *normalised_gradient(XLA_FFI_CallFrame *frame) {
  if (describes_itself(frame)) return NULL;
  const XLA_FFI_Buffer *x = operand(frame, 2), *d_both = result(frame, 1);
  const float *scale = operand(frame, 3)->data;
  i64 pixels = x->dims[0] * x->dims[1] * x->dims[2], width = x->dims[3], channels = d_both->dims[1];
  Normalised n = {.pixels = pixels, .width = width, .channels = channels, .total = going_on(frame, pixels * width), .x = x->data,
                  .gradient = operand(frame, 1)->data, .scale = scale, .shift = scale + channels};
  add_normalised(frame, &n, d_both->data, (float *)d_both->data + channels);
  return NULL;
}

#define RESULT -1
INLINE const XLA_FFI_Buffer *part(XLA_FFI_CallFrame *frame, int n) {
  return n == RESULT ? result(frame, 0) : operand(frame, n);
}

// One of the products of x [B, I], w [I, O] and y [B, O], or y's gradient: which operands they are, and which the result.
static XLA_FFI_Error *dense(XLA_FFI_CallFrame *frame, void (*run)(XLA_FFI_CallFrame *, Product *), int x, int w, int y) {
  if (describes_itself(frame)) return NULL;
  const XLA_FFI_Buffer *x_BI = part(frame, x), *w_IO = part(frame, w), *y_BO = part(frame, y);
  Product p = {x_BI->dims[0], x_BI->dims[1], w_IO->dims[1], .x = x_BI->data, .w = w_IO->data, .y = y_BO->data};
  run(frame, &p);
  return NULL;
}

XLA_FFI_Error *product(XLA_FFI_CallFrame *frame) { return dense(frame, multiply_dense, 0, 1, RESULT); }
XLA_FFI_Error *product_gradient(XLA_FFI_CallFrame *frame) { return dense(frame, input_gradient_dense, RESULT, 0, 1); }
XLA_FFI_Error *product_kernel_gradient(XLA_FFI_CallFrame *frame) { return dense(frame, correlate_dense, 0, RESULT, 1); }

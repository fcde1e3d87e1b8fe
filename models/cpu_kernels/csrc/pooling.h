// Max pooling over square windows, [image][row][column][channel]. Ties go to the first maximum in row-major order, and
// NaN is larger than every number. Pixels outside the image are never a maximum.

typedef struct {
  i64 batch, height, width, channels;  // Shape of the images.
  i64 rows, columns;                   // Size of the result.
  i64 side, stride, above, before;     // Side and stride of the windows; padding above and to the left of the image.
  i64 part, parts;                     // Gradient: channels per task; tasks per image.
  const float *x, *gradient;
  float *result;
} Pooling;

// A window at (top, left). Its part inside the image goes from place (i, j) to (bottom, right), exclusive.
typedef struct {
  i64 top, left, i, j, bottom, right;
} Window;

INLINE Window window_at(const Pooling *p, i64 row, i64 column) {
  i64 top = row * p->stride - p->above, left = column * p->stride - p->before;
  return (Window){top, left, max(0, -top), max(0, -left), min(p->side, p->height - top),
                  min(p->side, p->width - left)};
}

// The maximum of a window for the `valid` channels starting at `image`, and its place. The place is -1 if every place
// is outside the image or, except for the first one, minus infinity.
INLINE vector largest(const Pooling *p, Window w, const float *image, i64 valid, bits *place) {
  vector best = broadcast(-INFINITY);
  *place = (bits){} - 1;
  for (i64 i = w.i; i < w.bottom; i++)
    for (i64 j = w.j; j < w.right; j++) {
      vector x = load(image + ((w.top + i) * p->width + w.left + j) * p->channels, valid);
      bits here = (bits)(x > best) | (bits)(x != x);
      if (i == 0 && j == 0) here = (bits){} - 1;
      best = (vector)(((bits)x & here) | ((bits)best & ~here));
      *place = (((bits){} + (int32_t)(i * p->side + j)) & here) | (*place & ~here);
    }
  return best;
}

INLINE void pool_vector(const Pooling *p, Window w, const float *image, i64 valid, float *to) {
  bits place;
  store(to, largest(p, w, image, valid, &place), valid);
}

// Adds the gradient of a window's maximum at the position of the maximum.
INLINE void add_gradient(const Pooling *p, Window w, const float *image, i64 valid, const float *gradient, float *to) {
  bits place;
  largest(p, w, image, valid, &place);
  vector g = load(gradient, valid);
  for (i64 i = w.i; i < w.bottom; i++)
    for (i64 j = w.j; j < w.right; j++) {
      float *at = to + ((w.top + i) * p->width + w.left + j) * p->channels;
      bits here = (bits)(place == (bits){} + (int32_t)(i * p->side + j));
      store(at, load(at, valid) + (vector)((bits)g & here), valid);
    }
}

// Calls `each` with the window `w` and the valid channels. The loops are unrolled for the most common case, a whole 3x3
// window.
#define EACH(each, w, valid, ...) \
  if (p->side == 3 && (valid) >= LANES && w.i == 0 && w.j == 0 && w.bottom == 3 && w.right == 3) { \
    each(p, ((Window){w.top, w.left, 0, 0, 3, 3}), image + c, LANES, __VA_ARGS__); \
  } else each(p, w, image + c, valid, __VA_ARGS__);

// Computes one row of the maxima of one image.
static void pool_row(const void *data, i64 task, float *memory) {
  const Pooling *p = data;
  const float *image = p->x + task / p->rows * p->height * p->width * p->channels;
  float *to = p->result + task * p->columns * p->channels;
  for (i64 column = 0; column < p->columns; column++, to += p->channels) {
    Window w = window_at(p, task % p->rows, column);
    for (i64 c = 0; c < p->channels; c += LANES) EACH(pool_vector, w, p->channels - c, to + c)
  }
}

// Computes the gradient for some channels of one image.
static void pool_gradient(const void *data, i64 task, float *memory) {
  const Pooling *p = data;
  i64 n = task / p->parts, pixels = p->height * p->width * p->channels;
  i64 first = task % p->parts * p->part, end = min(first + p->part, p->channels);
  const float *image = p->x + n * pixels, *gradient = p->gradient + n * p->rows * p->columns * p->channels;
  float *to = p->result + n * pixels;
  for (i64 pixel = 0; pixel < p->height * p->width; pixel++)
    memset(to + pixel * p->channels + first, 0, 4 * (end - first));
  for (i64 row = 0; row < p->rows; row++)
    for (i64 column = 0; column < p->columns; column++, gradient += p->channels) {
      Window w = window_at(p, row, column);
      for (i64 c = first; c < end; c += LANES) EACH(add_gradient, w, end - c, gradient + c, to + c)
    }
}

// Runs the gradient with one task per image, or one per vector of channels if there are few images.
static XLA_FFI_Error *run_pool_gradient(XLA_FFI_CallFrame *frame, Pooling *p) {
  p->part = p->batch < FEW_TASKS ? LANES : p->channels;
  p->parts = ceil_div(p->channels, p->part);
  return run_tasks(frame, pool_gradient, p, p->batch * p->parts, 0);
}

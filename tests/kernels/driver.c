// Runs the CPU kernels on a grid and on random shapes around their tile sizes, and compares the results with simple
// loops. check.py compiles it with sanitizers. Usage: driver CASES, the number of random cases per kernel.

#include "stub.h"

#define malloc kernel_malloc
#define calloc kernel_calloc
#define aligned_alloc kernel_aligned_alloc
#include "convolution.c"
#undef malloc
#undef calloc
#undef aligned_alloc

#include "reference.h"

// Tolerances, relative to the largest expected value.
#define EXACT 0.0       // All sums are exact in float32.
#define ROUNDED 1e-6    // Each value is rounded a few times.
#define WINOGRAD 1e-5   // The transforms multiply by 1/6 to 8.

static int64_t compared;
static double largest_error;  // Relative error of Winograd's algorithm.
static pthread_mutex_t results = PTHREAD_MUTEX_INITIALIZER;  // Protects both.

// Compares an array with the expected values, with an error of at most `tolerance` times the largest expected value.
PLAIN static void compare(const Array *found, const double *expected, double tolerance, const char *what) {
  double largest = 0, error = 0;
  for (int64_t n = 0; n < found->floats; n++) {
    largest = fmax(largest, fabs(expected[n]));
    double difference = fabs(values(found)[n] - expected[n]);
    error = difference >= error || isnan(difference) ? difference : error;
    if (isnan(error)) break;
  }
  if (!(error <= tolerance * largest)) {
    char message[200];
    snprintf(message, sizeof message, "%s: error %g, largest value %g", what, error, largest);
    stop(message);
  }
  pthread_mutex_lock(&results);
  compared++;
  if (tolerance == WINOGRAD && largest > 0) largest_error = fmax(largest_error, error / largest);
  pthread_mutex_unlock(&results);
}

// Runs a call with one thread and with several, which must give bitwise equal results, and compares its first result
// array with the expected values.
static void check(Call *c, const double *expected, double tolerance, const char *what) {
  Array *y = c->results[0];
  float *before = malloc(4 * y->floats);
  int64_t threads[] = {1, POOL + 1, PICK(0, 2)};
  for (int n = 0; n < 3; n++) {
    clear(y);
    pool_threads = threads[n];
    run_or_stop(c);
    if (n && memcmp(before, values(y), 4 * y->floats)) stop("results depend on the number of threads");
    memcpy(before, values(y), 4 * y->floats);
  }
  pool_threads = POOL + 1;
  compare(y, expected, tolerance, what);
  free(before);
}

// ---- Convolution ----

static int64_t products(const Case *c) {
  return c->batch * c->rows * c->columns * c->tall * c->wide * c->channels * c->outputs;
}

static Work described(const Case *c) {
  return (Work){.batch = c->batch, .height = c->height, .width = c->width, .channels = c->channels,
                .rows = c->rows, .columns = c->columns, .outputs = c->outputs, .tall = c->tall, .wide = c->wide,
                .down = c->down, .right = c->right};
}

static Call convolution_call(const Case *c, int is_gradient) {
  Array *images = array(4, c->batch, c->height, c->width, c->pixel);
  Array *kernel = array(4, c->tall, c->wide, c->channels, c->outputs);
  Array *y = array(4, c->batch, c->rows, c->columns, c->outputs);
  Array *scale = c->affine ? array(2, 2, c->channels, 0, 0) : NULL;
  return (Call){is_gradient ? kernel_gradient : convolution, {images, is_gradient ? y : kernel, scale},
                {is_gradient ? kernel : y}, 2 + c->affine, 1, "window", {c->down, c->right, c->top, c->left}, 0};
}

static void check_convolution(const Case *c) {
  Work w = described(c);
  char what[300];
  for (int is_gradient = 0; is_gradient < 2; is_gradient++) {
    int is_winograd = winograd_pays(&w);
    snprintf(what, sizeof what,
             "%s%s%s: images %lldx%lldx%lldx%lld of %lld, window %lldx%lld, stride %lld %lld, padding %lld %lld, "
             "result %lldx%lldx%lld", is_winograd ? "Winograd " : "direct ",
             is_gradient ? "kernel gradient" : "convolution", c->affine ? " with affine" : "",
             (long long)c->batch, (long long)c->height, (long long)c->width, (long long)c->channels,
             (long long)c->pixel, (long long)c->tall, (long long)c->wide, (long long)c->down, (long long)c->right,
             (long long)c->top, (long long)c->left, (long long)c->rows, (long long)c->columns, (long long)c->outputs);
    Call call = convolution_call(c, is_gradient);
    double *expected = calloc(call.results[0]->floats, sizeof *expected);
    const float *x = values(call.operands[0]), *second = values(call.operands[1]);
    const float *scale = c->affine ? values(call.operands[2]) : NULL;
    convolve_plainly(c, x, scale, second, expected, is_gradient ? second : NULL, expected);
    check(&call, expected, is_winograd ? WINOGRAD : EXACT, what);
    free(expected);
    release_arrays(&call);
  }
}

#define AROUND(n) (n) - 1, (n), (n) + 1

static Case random_case(int64_t most) {
  for (;;) {
    int is_winograd = draw(0, 2) == 0;
    Case c = {.batch = draw(1, 3), .tall = draw(1, 5), .wide = draw(1, 5), .down = draw(1, 3), .right = draw(1, 3),
              .top = draw(-2, 4), .left = draw(-2, 4), .rows = draw(1, 9), .affine = draw(0, 1)};
    c.columns = PICK(1, 2, AROUND(TILE / 4), AROUND(TILE / 2), AROUND(TILE), 2 * TILE + 1);
    c.channels = PICK(1, 2, 3, AROUND(6), AROUND(TILE / 2), AROUND(BLOCK), AROUND(2 * BLOCK));
    c.outputs = PICK(1, 2, 3, AROUND(LANES), AROUND(2 * LANES), AROUND(4 * LANES), 5 * LANES);
    if (is_winograd) {
      c.tall = draw(3, 7), c.wide = draw(3, 7), c.down = c.right = 1, c.rows = draw(3, 13), c.columns = draw(3, 17);
      c.channels = PICK(16, 17, AROUND(32), 48), c.outputs = PICK(12, 13, AROUND(16), AROUND(32), 65);
    }
    c.height = draw(1, c.rows * c.down + c.tall), c.width = draw(1, c.columns * c.right + c.wide);
    c.pixel = c.channels + (c.affine ? draw(0, 5) : 0);
    Work w = described(&c);
    if (products(&c) <= most && is_winograd <= winograd_pays(&w)) return c;
  }
}

static void check_grid_of_convolutions(int is_short) {
  int64_t outputs[] = {1, AROUND(LANES), AROUND(2 * LANES), 4 * LANES, 4 * LANES + 1};
  int64_t channels[] = {1, 6, 7, AROUND(BLOCK), 2 * BLOCK + 1};
  int64_t columns[] = {1, 6, 7, AROUND(TILE), 2 * TILE + 1};
  for (size_t o = 0; o < sizeof outputs / 8; o++)
    for (size_t k = 0; k < sizeof channels / 8; k++)
      for (size_t n = 0; n < sizeof columns / 8; n++) {
        if (is_short && (o + k + n) % 7) continue;
        int64_t stride = 1 + (o + n) % 2, side = 1 + (k + n) % 3;
        check_convolution(&(Case){.batch = 2, .height = 3, .width = columns[n] * stride, .channels = channels[k],
                                  .pixel = channels[k], .outputs = outputs[o], .tall = side, .wide = side,
                                  .down = 1, .right = stride, .top = side / 2, .left = side / 2, .rows = 2,
                                  .columns = columns[n]});
      }
  Case special[] = {
      // An image in several strips; a kernel gradient computed in slices; several chunks of Winograd tiles.
      {.batch = 1, .height = 40, .width = 50, .channels = 65, .pixel = 65, .outputs = 3, .tall = 2, .wide = 3,
       .down = 1, .right = 1, .top = 1, .left = 1, .rows = 40, .columns = 50},
      {.batch = 2, .height = 2, .width = 2, .channels = 512, .pixel = 512, .outputs = 130, .tall = 3, .wide = 3,
       .down = 1, .right = 1, .top = 1, .left = 1, .rows = 2, .columns = 2},
      {.batch = 2, .height = 40, .width = 40, .channels = 32, .pixel = 40, .outputs = 16, .tall = 3, .wide = 3,
       .down = 1, .right = 1, .top = 1, .left = 1, .rows = 40, .columns = 40, .affine = 1},
      // Strides larger than the window and the image; a result that lies in the padding.
      {.batch = 1, .height = 4, .width = 4, .channels = 17, .pixel = 17, .outputs = 5, .tall = 1, .wide = 2,
       .down = 7, .right = 9, .top = 0, .left = 1, .rows = 2, .columns = 3},
      {.batch = 1, .height = 2, .width = 2, .channels = 3, .pixel = 3, .outputs = 5, .tall = 1, .wide = 1,
       .down = 1, .right = 1, .top = 20, .left = -20, .rows = 2, .columns = 3},
  };
  for (size_t n = is_short ? 3 : 0; n < sizeof special / sizeof *special; n++) check_convolution(&special[n]);
}

// A NaN in an image propagates to every result that reads it, also through max(0, scale x + shift).
static void check_nan(void) {
  for (int n = 0; n < 4; n++) {
    Case c = {.batch = 1, .height = 8, .width = 8, .channels = 32, .pixel = 32, .outputs = 12, .tall = 3, .wide = 3,
              .down = 1, .right = 1, .top = 1, .left = 1, .rows = 8, .columns = 8, .affine = n % 2};
    if (n / 2) c.tall = c.wide = 2;
    Call call = convolution_call(&c, 0);
    values(call.operands[0])[5] = NAN;
    run_or_stop(&call);
    if (!isnan(values(call.results[0])[0])) stop("a NaN does not propagate");
    release_arrays(&call);
  }
}

// ---- Products ----

static void check_products(int64_t rows, int64_t inputs, int64_t outputs) {
  char what[100];
  snprintf(what, sizeof what, "product: %lld rows, %lld to %lld", (long long)rows, (long long)inputs,
           (long long)outputs);
  for (int n = 0; n < 3; n++) {
    Array *x = array(2, rows, inputs, 0, 0), *w = array(2, inputs, outputs, 0, 0), *y = array(2, rows, outputs, 0, 0);
    Array *of[] = {y, x, w}, *result = of[n];
    double *expected = calloc(result->floats, sizeof *expected);
    Call call = {.result_count = 1, .results = {result}, .operand_count = 2};
    if (n == 0) {
      call.kernel = product, call.operands[0] = x, call.operands[1] = w;
      multiply_plainly(rows, inputs, outputs, values(x), inputs, 1, values(w), outputs, 1, expected);
    } else if (n == 1) {
      call.kernel = product_gradient, call.operands[0] = w, call.operands[1] = y;
      multiply_plainly(rows, outputs, inputs, values(y), outputs, 1, values(w), 1, outputs, expected);
    } else {
      call.kernel = product_kernel_gradient, call.operands[0] = x, call.operands[1] = y;
      multiply_plainly(inputs, rows, outputs, values(x), 1, inputs, values(y), outputs, 1, expected);
    }
    check(&call, expected, EXACT, what);
    free(expected);
    release_arrays(&call);
  }
}

// ---- Dense blocks ----

static Call affine_relu_call(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t pixel) {
  return (Call){affine_relu_gradient,
                {array(4, batch, height, width, pixel), array(4, batch, height, width, channels),
                 array(4, batch, height, width, pixel), array(2, 2, channels, 0, 0)},
                {array(4, batch, height, width, pixel), array(2, 2, channels, 0, 0)}, 4, 2, NULL, {0}, 0};
}

static void check_affine_relu_gradient(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t pixel) {
  Call call = affine_relu_call(batch, height, width, channels, pixel);
  const float *total = values(call.operands[0]), *gradient = values(call.operands[1]), *x = values(call.operands[2]);
  const float *scale = values(call.operands[3]);
  double *expected = calloc(call.results[0]->floats, sizeof *expected), *both = calloc(2 * channels, sizeof *both);
  for (int64_t n = 0; n < call.results[0]->floats; n++) {
    int64_t p = n / pixel, c = n % pixel;
    expected[n] = total[n];
    if (c >= channels || !(x[n] * scale[c] + scale[channels + c] > 0)) continue;
    double g = gradient[p * channels + c];
    expected[n] += g * scale[c], both[c] += g * x[n], both[channels + c] += g;
  }
  check(&call, expected, EXACT, "affine_relu_gradient");
  compare(call.results[1], both, EXACT, "affine_relu_gradient: scale and shift");
  Array *separate = call.results[0];  // XLA may alias the two.
  call.results[0] = call.operands[0];
  run_or_stop(&call);
  compare(call.results[0], expected, EXACT, "affine_relu_gradient in place");
  call.results[0] = separate;
  free(expected), free(both);
  release_arrays(&call);
}

static Call affine_call(int64_t channels, int64_t pixel) {
  Call call = {affine, {array(1, channels, 0, 0, 0), array(1, channels, 0, 0, 0), array(2, 2, pixel, 0, 0)},
               {array(2, 2, channels, 0, 0)}, 3, 1, "epsilon", {0}, 0.5f};
  for (int64_t c = 0; c < pixel; c++) values(call.operands[2])[pixel + c] = draw(0, 8) / 8.0f;  // Variances.
  return call;
}

static Call affine_gradient_call(int64_t channels, int64_t pixel) {
  Call call = {affine_gradient,
               {array(2, 2, pixel, 0, 0), array(2, 2, channels, 0, 0), array(1, channels, 0, 0, 0),
                array(2, 2, pixel, 0, 0)},
               {array(2, 2, pixel, 0, 0), array(2, 2, channels, 0, 0)}, 4, 2, "epsilon", {0}, 0.5f};
  for (int64_t c = 0; c < pixel; c++) values(call.operands[3])[pixel + c] = draw(0, 8) / 8.0f;
  return call;
}

static Call running_call(int64_t channels, int64_t pixel) {
  return (Call){update_running_stats,
                {array(1, channels, 0, 0, 0), array(1, channels, 0, 0, 0), array(2, 2, pixel, 0, 0)},
                {array(1, channels, 0, 0, 0), array(1, channels, 0, 0, 0)}, 3, 2, "momentum", {0}, 0.75f};
}

static void check_batch_norm(int64_t channels, int64_t pixel) {
  double *expected = calloc(2 * pixel, sizeof *expected), *norm = calloc(2 * channels, sizeof *norm);
  Call call = affine_call(channels, pixel);
  const float *scale = values(call.operands[0]), *bias = values(call.operands[1]), *mean = values(call.operands[2]);
  for (int64_t c = 0; c < channels; c++) {
    expected[c] = scale[c] / sqrt(mean[pixel + c] + 0.5);
    expected[channels + c] = bias[c] - mean[c] * expected[c];
  }
  check(&call, expected, ROUNDED, "affine");
  release_arrays(&call);
  call = affine_gradient_call(channels, pixel);
  const float *of_a = values(call.operands[1]), *of_b = of_a + channels;
  scale = values(call.operands[2]), mean = values(call.operands[3]);
  for (int64_t n = 0; n < 2 * pixel; n++) expected[n] = values(call.operands[0])[n];
  for (int64_t c = 0; c < channels; c++) {
    double variance = mean[pixel + c] + 0.5, d_a = of_a[c] - (double)of_b[c] * mean[c];
    norm[c] = d_a / sqrt(variance), norm[channels + c] = of_b[c];
    expected[c] -= of_b[c] * scale[c] / sqrt(variance);
    expected[pixel + c] -= d_a * scale[c] / 2 / (variance * sqrt(variance));
  }
  check(&call, expected, ROUNDED, "affine_gradient");
  compare(call.results[1], norm, ROUNDED, "affine_gradient: scale and bias");
  release_arrays(&call);
  call = running_call(channels, pixel);
  for (int n = 1; n >= 0; n--)
    for (int64_t c = 0; c < channels; c++)
      (n ? norm : expected)[c] =
          0.75 * values(call.operands[n])[c] + 0.25 * values(call.operands[2])[n * pixel + c];
  check(&call, expected, EXACT, "update_running_stats");
  compare(call.results[1], norm, EXACT, "update_running_stats: variance");
  release_arrays(&call);
  free(expected), free(norm);
}

// ---- Batch norm in training ----

enum { MOMENTS };  // In addition to the values of Part.

// `shortcut` adds the optional arrays. The variances are 0.5 or 4.
static Call norm_call(int kind, int64_t pixels, int64_t channels, int shortcut, float slope) {
  Array *x = array(2, pixels, channels, 0, 0), *more = array(2, pixels, channels, 0, 0);
  if (kind == MOMENTS) {
    release(more);
    return (Call){batch_moments, {x}, {array(2, 2, channels, 0, 0)}, 1, 1, NULL, {0}, 0};
  }
  Array *moments = array(2, 2, channels, 0, 0), *scale = array(1, channels, 0, 0, 0), *bias = array(1, channels, 0, 0, 0);
  for (int64_t c = 0; c < channels; c++)
    values(moments)[channels + c] = values(moments)[c] * values(moments)[c] + PICK(0, 7) / 2.0f + 0.5f;
  Call call = {batch_norm, {x, moments, scale, bias, shortcut ? more : NULL}, {array(2, pixels, channels, 0, 0)},
               4 + shortcut, 1, "epsilon", {0}, 0.5f, "slope", slope};
  if (kind == FORWARD) {
    if (!shortcut) release(more);
    return call;
  }
  Array *gradient = array(2, pixels, channels, 0, 0), *means = array(2, 2, channels, 0, 0);
  Call sums = {batch_norm_sums, {gradient, x, moments, scale, bias, shortcut ? more : NULL},
               {means, shortcut ? call.results[0] : NULL}, 5 + shortcut, 1 + shortcut, "epsilon", {0}, 0.5f, "slope",
               slope};
  if (kind == SUMS) {
    if (!shortcut) release(more), release(call.results[0]);
    return sums;
  }
  release(more);
  return (Call){batch_norm_gradient, {gradient, x, moments, scale, bias, means}, {call.results[0]}, 6, 1, "epsilon",
                {0}, 0.5f, "slope", slope};
}

static void check_norm(int64_t pixels, int64_t channels, int shortcut, float slope) {
  int64_t floats = pixels * channels;
  double *expected = calloc(floats, sizeof *expected), *sums = calloc(2 * channels, sizeof *sums);
  Call call = norm_call(MOMENTS, pixels, channels, 0, 0);
  for (int64_t n = 0; n < floats; n++) {
    double x = values(call.operands[0])[n];
    sums[n % channels] += x / pixels, sums[channels + n % channels] += x * x / pixels;
  }
  check(&call, sums, ROUNDED, "batch_moments");
  release_arrays(&call);
  for (int kind = FORWARD; kind <= GRADIENT; kind++) {
    call = norm_call(kind, pixels, channels, shortcut && kind < GRADIENT, slope);
    const float *gradient = values(call.operands[0]), *x = values(call.operands[kind > FORWARD]);
    const float *moments = values(call.operands[1 + (kind > FORWARD)]);
    const float *scale = values(call.operands[2 + (kind > FORWARD)]);
    const float *bias = values(call.operands[3 + (kind > FORWARD)]);
    const float *more = kind == GRADIENT ? values(call.operands[5]) : NULL;
    if (shortcut && kind < GRADIENT) more = values(call.operands[4 + (kind > FORWARD)]);
    memset(sums, 0, 2 * channels * sizeof *sums);
    for (int64_t n = 0; n < floats; n++) {
      int64_t c = n % channels;
      double variance = moments[channels + c] - (double)moments[c] * moments[c] + 0.5, a = scale[c] / sqrt(variance);
      double centred = x[n] - (double)moments[c], y = centred * a + bias[c];
      if (shortcut && kind == FORWARD) y += more[n];
      if (shortcut && kind == SUMS) y = more[n];
      double g = kind == FORWARD ? 0 : gradient[n] * (y > 0 ? 1 : (double)slope);
      sums[c] += g / pixels, sums[channels + c] += g * centred / pixels;
      if (kind == FORWARD) expected[n] = y > 0 ? y : slope * y;
      if (kind == SUMS) expected[n] = g;
      if (kind == GRADIENT) expected[n] = a * (g - more[c] - centred / variance * more[channels + c]);
    }
    check(&call, kind == SUMS ? sums : expected, ROUNDED, "batch norm");
    if (kind == SUMS && shortcut) compare(call.results[1], expected, ROUNDED, "the shortcut's gradient");
    release_arrays(&call);
  }
  free(expected), free(sums);
}

// ---- Max pooling ----

static Call pool_call(const Case *c, int is_gradient) {
  Array *x = array(4, c->batch, c->height, c->width, c->channels);
  Array *y = array(4, c->batch, c->rows, c->columns, c->channels);
  return (Call){is_gradient ? max_pool_gradient : max_pool, {x, is_gradient ? y : NULL},
                {is_gradient ? array(4, c->batch, c->height, c->width, c->channels) : y}, 1 + is_gradient, 1, "window",
                {c->tall, c->down, c->top, c->left}, 0};
}

// With `nan`, some values are NaN or minus infinity. If a window has NaNs, its maximum is the last NaN. The maximum of
// a window outside the image is minus infinity.
static void check_pool(const Case *c, int nan) {
  for (int is_gradient = 0; is_gradient < 2; is_gradient++) {
    Call call = pool_call(c, is_gradient);
    float *x = values(call.operands[0]);
    for (int64_t n = 0; nan && n < call.operands[0]->floats; n++)
      if (draw(0, 1) == 0) x[n] = PICK(0, 1) ? NAN : -INFINITY;
    double *expected = calloc(call.results[0]->floats, sizeof *expected);
    for (int64_t n = 0; n < c->batch * c->rows * c->columns * c->channels; n++) {
      int64_t ch = n % c->channels, column = n / c->channels % c->columns;
      int64_t row = n / c->channels / c->columns % c->rows, image = n / c->channels / c->columns / c->rows;
      double best = -INFINITY;
      int64_t place = -1;
      for (int64_t k = 0; k < c->tall * c->tall; k++) {
        int64_t i = row * c->down - c->top + k / c->tall, j = column * c->down - c->left + k % c->tall;
        if (i < 0 || j < 0 || i >= c->height || j >= c->width) continue;
        int64_t at = ((image * c->height + i) * c->width + j) * c->channels + ch;
        if (x[at] > best || isnan(x[at]) || k == 0) best = x[at], place = at;
      }
      if (!is_gradient) expected[n] = best;
      else if (place >= 0) expected[place] += values(call.operands[1])[n];
    }
    if (is_gradient) check(&call, expected, EXACT, "max_pool_gradient");
    else run_or_stop(&call);
    for (int64_t n = 0; n < call.results[0]->floats && !is_gradient; n++) {
      float found = values(call.results[0])[n];
      if (isnan(found) ? !isnan(expected[n]) : found != expected[n]) stop("max_pool");
    }
    free(expected);
    release_arrays(&call);
  }
}

static void check_random_pool(void) {
  Case c = {.batch = PICK(1, 2, 9), .tall = draw(1, 4), .down = draw(1, 4), .top = draw(-1, 2), .left = draw(-1, 2),
            .rows = draw(1, 5), .columns = draw(1, 5), .channels = PICK(1, AROUND(LANES), 2 * LANES + 3)};
  c.height = draw(1, c.rows * c.down + 2), c.width = draw(1, c.columns * c.down + 2);
  check_pool(&c, draw(0, 1));
}

// ---- Errors ----

static Call valid_direct(int gradient) {
  Case direct = {.batch = 2, .height = 5, .width = 6, .channels = 3, .pixel = 4, .outputs = 4, .tall = 2, .wide = 2,
                 .down = 1, .right = 1, .rows = 4, .columns = 5, .affine = 1};
  return convolution_call(&direct, gradient);
}

static Call valid_winograd(int gradient) {
  Case winograd = {.batch = 2, .height = 12, .width = 12, .channels = 32, .pixel = 32, .outputs = 12, .tall = 3,
                   .wide = 3, .down = 1, .right = 1, .rows = 12, .columns = 12};
  return convolution_call(&winograd, gradient);
}

static Call valid_affine_relu(int n) { return affine_relu_call(2, 3, 4, 5, 6); }

static Call valid_affine(int gradient) { return gradient ? affine_gradient_call(3, 4) : affine_call(3, 4); }

static Call valid_norm(int kind) { return norm_call(kind, 40, 19, kind == FORWARD, 0.5f); }

static Call valid_pool(int gradient) {
  return pool_call(&(Case){.batch = 9, .height = 7, .width = 6, .channels = 19, .tall = 3, .down = 2, .top = 1,
                           .left = 1, .rows = 4, .columns = 3}, gradient);
}

static Call valid_running(int n) { return running_call(3, 4); }

static Call valid_product(int n) {
  Array *x = array(2, 17, 18, 0, 0), *w = array(2, 18, 19, 0, 0), *y = array(2, 17, 19, 0, 0);
  if (n == 0) return (Call){product, {x, w}, {y}, 2, 1, NULL, {0}, 0};
  if (n == 1) return (Call){product_gradient, {w, y}, {x}, 2, 1, NULL, {0}, 0};
  return (Call){product_kernel_gradient, {x, y}, {w}, 2, 1, NULL, {0}, 0};
}

// Valid calls, which the functions below make invalid one way at a time, and whether the kernel allocates memory.
static const struct {
  Call (*make)(int);
  int argument, allocates;
} valid_calls[] = {
    {valid_direct, 0, 1},  {valid_direct, 1, 1}, {valid_winograd, 0, 1}, {valid_winograd, 1, 1},
    {valid_affine_relu, 0, 1}, {valid_affine, 0, 0}, {valid_affine, 1, 0},   {valid_running, 0, 0},
    {valid_product, 0, 1}, {valid_product, 1, 1}, {valid_product, 2, 1}, {valid_norm, MOMENTS, 1},
    {valid_norm, FORWARD, 1}, {valid_norm, SUMS, 1}, {valid_norm, GRADIENT, 1},
    {valid_pool, 0, 1}, {valid_pool, 1, 1},
};
enum { VALID_CALLS = sizeof valid_calls / sizeof *valid_calls };

static void must_fail(const Call *call, XLA_FFI_Error_Code code) {
  XLA_FFI_Error *error = run(call);
  if (!error) stop("an invalid call is accepted");
  if (error->code != code) stop(error->message);
  free(error);
  compared++;
}

// Checks wrong numbers of arrays, element types and ranks, empty dimensions and missing attributes.
static void check_wrong_calls(void) {
  for (int n = 0; n < VALID_CALLS; n++) {
    Call call = valid_calls[n].make(valid_calls[n].argument);
    run_or_stop(&call);
    for (int m = 0; m < call.operand_count + call.result_count; m++) {
      Array *a = m < call.operand_count ? call.operands[m] : call.results[m - call.operand_count];
      a->buffer.dtype = XLA_FFI_DataType_S32, must_fail(&call, INVALID), a->buffer.dtype = XLA_FFI_DataType_F32;
      a->dims[a->buffer.rank] = 1;
      a->buffer.rank++, must_fail(&call, INVALID), a->buffer.rank -= 2, must_fail(&call, INVALID), a->buffer.rank++;
      for (int d = 0; d < a->buffer.rank; d++) {
        int64_t size = a->dims[d];
        a->dims[d] = 0, must_fail(&call, INVALID), a->dims[d] = -1, must_fail(&call, INVALID), a->dims[d] = size;
      }
    }
    call.result_count--, must_fail(&call, INVALID), call.result_count++;
    int count = call.operand_count;
    call.operand_count = 0, must_fail(&call, INVALID), call.operand_count = count;
    const char *name = call.attribute;
    if (name) call.attribute = "windows", must_fail(&call, INVALID), call.attribute = NULL, must_fail(&call, INVALID);
    call.attribute = name;
    run_or_stop(&call);
    release_arrays(&call);
  }
}

typedef struct {
  Call call;
  int errors;
} Attempt;

static void *run_without_memory(void *data) {
  Attempt *attempt = data;
  Call *call = &attempt->call;
  clear(call->results[0]);
  XLA_FFI_Error *error = run(call);
  if (error && error->code != XLA_FFI_Error_Code_RESOURCE_EXHAUSTED) stop(error->message);
  attempt->errors += error != NULL;
  for (int64_t n = 0; n < call->results[0]->floats && !error; n++)
    if (isnan(values(call->results[0])[n])) stop("a call without memory did not finish");
  free(error);
  return NULL;
}

// Makes each allocation fail in turn, alone or with all that follow. The call must return an error, or the correct
// result if a helper's allocation failed; nothing may leak and no thread may wait forever. Each call runs in a new
// thread, which has no memory yet.
static void check_without_memory(void) {
  for (int n = 0; n < VALID_CALLS; n++) {
    Attempt attempt = {valid_calls[n].make(valid_calls[n].argument), 0};
    for (int m = 0; m < 16; m++) {
      pthread_t thread;
      __atomic_store_n(&one_fails, m % 2, __ATOMIC_RELEASE);
      __atomic_store_n(&allocations_left, m / 2, __ATOMIC_RELEASE);
      if (pthread_create(&thread, NULL, run_without_memory, &attempt)) stop("cannot create a thread");
      pthread_join(thread, NULL);
    }
    __atomic_store_n(&allocations_left, INT64_MAX, __ATOMIC_RELEASE);
    if (valid_calls[n].allocates ? attempt.errors < 4 : attempt.errors) stop("a failed allocation gives no error");
    release_arrays(&attempt.call);
    compared++;
  }
}

// ---- All ----

static void check_random(int64_t cases, int64_t most) {
  for (int64_t n = 0; n < cases; n++) {
    Case c = random_case(most);
    check_convolution(&c);
    int64_t pixel = draw(1, 70);
    check_affine_relu_gradient(draw(1, 3), draw(1, 9), draw(1, 9), draw(1, pixel), pixel);
    check_batch_norm(draw(1, pixel), pixel);
    check_norm(draw(1, 80), PICK(1, AROUND(LANES), AROUND(4 * LANES), 9 * LANES + 5), draw(0, 1), PICK(0, 1, 2) / 2.0f);
    check_random_pool();
    int64_t rows = PICK(1, AROUND(16), AROUND(2 * ROWS), AROUND(COLUMNS)), outputs = 0, inputs = 0;
    do {
      inputs = PICK(AROUND(BLOCK), AROUND(3 * BLOCK), AROUND(TILES * ROWS), AROUND(DEPTH), 2 * DEPTH + 3);
      outputs = PICK(1, AROUND(BLOCK), AROUND(COLUMNS), AROUND(2 * COLUMNS));
    } while (rows * inputs * outputs > 2 * most);
    check_products(rows, inputs, outputs);
  }
}

typedef struct {
  int64_t cases, most, seed;
} Plan;

static void *run_plan(void *data) {
  const Plan *plan = data;
  random_state += 1000003 * plan->seed;
  check_random(plan->cases, plan->most);
  return NULL;
}

int main(int count, char **arguments) {
  int64_t cases = count > 1 ? atoll(arguments[1]) : 100;
  int is_short = cases < 100;
  int64_t most = 2000000;  // Products of a convolution.
  start_pool();
  check_wrong_calls();
  check_without_memory();
  check_nan();
  check_grid_of_convolutions(is_short);
  Plan plans[] = {{cases / 2, most, 1}, {cases - cases / 2, most, 2}};  // Two concurrent callers, as in XLA.
  pthread_t threads[2];
  for (int n = 0; n < 2; n++)
    if (pthread_create(&threads[n], NULL, run_plan, &plans[n])) stop("cannot create a thread");
  for (int n = 0; n < 2; n++) pthread_join(threads[n], NULL);
  end_pool();
  Memory *memory = has_memory_key ? pthread_getspecific(memory_key) : NULL;  // main's memory is not released at exit.
  if (memory) free_memory(memory);
  printf("%d lanes, %lld comparisons, largest error of Winograd's algorithm %.1e\n", LANES, (long long)compared,
         largest_error);
  return 0;
}

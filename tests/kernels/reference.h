// Reference implementations of the kernels: simple loops in float64.

#define PLAIN __attribute__((no_sanitize("address", "undefined", "thread")))  // For speed; the kernels are sanitized.

typedef struct {
  int64_t batch, height, width, channels, pixel, outputs, tall, wide, down, right, top, left, rows, columns;
  int affine;
} Case;

// The input of a convolution: x, or max(0, scale x + shift).
PLAIN static double input_of(const Case *c, const float *x, const float *scale, int64_t pixel, int64_t channel) {
  double value = x[pixel * c->pixel + channel];
  if (!c->affine) return value;
  value = value * scale[channel] + scale[c->channels + channel];
  return value > 0 ? value : 0;
}

// Adds a convolution to `y`, or, if `gradient` is given, its kernel gradient to `d_kernel`.
PLAIN static void convolve_plainly(const Case *c, const float *x, const float *scale, const float *kernel, double *y,
                                   const float *gradient, double *d_kernel) {
  for (int64_t b = 0; b < c->batch; b++)
    for (int64_t r = 0; r < c->rows; r++)
      for (int64_t n = 0; n < c->columns; n++)
        for (int64_t i = 0; i < c->tall; i++)
          for (int64_t j = 0; j < c->wide; j++) {
            int64_t row = r * c->down - c->top + i, column = n * c->right - c->left + j;
            if (row < 0 || row >= c->height || column < 0 || column >= c->width) continue;
            int64_t to = ((b * c->rows + r) * c->columns + n) * c->outputs;
            for (int64_t k = 0; k < c->channels; k++) {
              double value = input_of(c, x, scale, (b * c->height + row) * c->width + column, k);
              int64_t line = ((i * c->wide + j) * c->channels + k) * c->outputs;
              for (int64_t o = 0; o < c->outputs; o++)
                if (gradient) d_kernel[line + o] += value * gradient[to + o];
                else y[to + o] += value * kernel[line + o];
            }
          }
}

// Adds the product a b to c [rows, columns]; the strides of the rows and columns of a and b are given.
PLAIN static void multiply_plainly(int64_t rows, int64_t depth, int64_t columns, const float *a, int64_t a_row,
                                   int64_t a_column, const float *b, int64_t b_row, int64_t b_column, double *c) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t k = 0; k < depth; k++)
      for (int64_t j = 0; j < columns; j++)
        c[i * columns + j] += (double)a[i * a_row + k * a_column] * b[k * b_row + j * b_column];
}

// The gradient of max(0, scale x + shift) with respect to x, scale and shift, in one pass over memory.

typedef struct {
  i64 pixels, width, channels;
  float *total;
  const float *gradient, *x, *scale, *shift;
  float *sums;  // [share][of scale, of shift][channels, padded]
} AffineRelu;

static void add_share(const void *data, i64 share, float *memory) {
  const AffineRelu *n = data;
  i64 filled = ceil_div(n->channels, LANES) * LANES;
  float *of_scale = n->sums + share * 2 * filled, *of_shift = of_scale + filled;
  memset(of_scale, 0, 8 * filled);
  for (i64 p = share * n->pixels / SHARES; p < (share + 1) * n->pixels / SHARES; p++) {
    const float *x = n->x + p * n->width, *gradient = n->gradient + p * n->channels;
    float *total = n->total + p * n->width;
    for (i64 c = 0; c < n->channels; c += LANES) {
      i64 valid = n->channels - c;
      vector value = load(x + c, valid), scale = load(n->scale + c, valid), g = load(gradient + c, valid);
      vector passed = (vector)((bits)g & (bits)(value * scale + load(n->shift + c, valid) > 0));
      *(vector *)(of_scale + c) += passed * value;
      *(vector *)(of_shift + c) += passed;
      store(total + c, load(total + c, valid) + passed * scale, valid);
    }
  }
}

static XLA_FFI_Error *add_affine_relu_gradient(XLA_FFI_CallFrame *frame, AffineRelu *n, float *d_scale,
                                               float *d_shift) {
  i64 filled = ceil_div(n->channels, LANES) * LANES;
  n->sums = allocate(SHARES * 2 * filled);
  if (!n->sums) return out_of_memory(frame, SHARES * 2 * filled);
  XLA_FFI_Error *error = run_tasks(frame, add_share, n, SHARES, 0);
  if (error) {
    free(n->sums);
    return error;
  }
  memcpy(d_scale, n->sums, 4 * n->channels);
  memcpy(d_shift, n->sums + filled, 4 * n->channels);
  for (i64 share = 1; share < SHARES; share++)
    for (i64 c = 0; c < n->channels; c++) {
      d_scale[c] += n->sums[share * 2 * filled + c];
      d_shift[c] += n->sums[(share * 2 + 1) * filled + c];
    }
  free(n->sums);
  return NULL;
}

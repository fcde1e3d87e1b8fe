// Matrix products of a dense layer: y = x w, and the gradients x^T g and g w^T, for x [B, I], w [I, O] and g [B, O].
// The order of all sums depends only on the shapes, not on the number of threads.

#define COLUMNS (4 * LANES)     // Columns of a panel.
#define ROWS (TILE / 4)         // Rows of a tile, so that its product with a panel fits into the registers.
#define DEPTH 512               // Lines of a panel per pass, so that they fit into the L2 cache.
#define TILES 8                 // Tiles per task.

typedef struct {
  i64 rows, inputs, outputs;
  float *x, *w, *y;             // Two operands and the result; y is y or its gradient.
  float *packed;                // Tiles [tile][block of 16][row of tile][16], or panels [panel][line][COLUMNS].
} Product;

// Stores a vector without reading its memory into the caches.
#if __has_builtin(__builtin_nontemporal_store)
#define STREAM __builtin_nontemporal_store
#else
#define STREAM(x, to) (*(to) = (x))
#endif
typedef float full __attribute__((vector_size(4 * LANES), may_alias));

// Packs `length` columns of `count` rows, `stride` floats apart, in blocks of 16 columns. The last block is padded with
// zeros.
static void pack_tile(const float *from, i64 stride, i64 count, i64 length, float *to) {
  for (i64 b = 0; b < length; b += BLOCK)
    for (i64 r = 0; r < count; r++)
      for (i64 c = 0; c < BLOCK; c += LANES, to += LANES)
        *(vector *)to = load(from + r * stride + b + c, length - b - c);
}

// Packs columns `first` to first + COLUMNS of a matrix [lines][length], padded with zeros.
static void pack_panel(const float *from, i64 lines, i64 length, i64 first, float *to) {
  for (i64 n = 0; n < lines; n++)
    for (i64 v = first; v < first + COLUMNS; v += LANES, to += LANES)
      *(vector *)to = load(from + n * length + v, length - v);
}

// `pack_panel` for a transposed matrix: `from` is [length][lines].
static void pack_transposed(const float *from, i64 lines, i64 length, i64 first, float *to) {
  for (i64 n = 0; n < lines; n += BLOCK)
    for (i64 v = 0; v < COLUMNS; v++)
      for (i64 c = n; c < min(n + BLOCK, lines); c++)
        to[c * COLUMNS + v] = first + v < length ? from[(first + v) * lines + c] : 0;
}

// Multiplies a tile by a panel; each result is a sum of `length` products.
static void multiply_tile(i64 count, i64 length, const float *tile, const float *panel, float *to, i64 width, i64 valid,
                          i64 accumulate) {
  Taps taps = {.tall = 1, .wide = 1, .channels = length, .block = count * BLOCK, .right = 1};
  multiply_4(count, &taps, tile, panel, to, width, valid, accumulate);
}

// Packs one operand into `floats` floats in `firsts` tasks, and multiplies in `seconds` tasks, with `thread_floats`
// floats of memory for each thread.
static XLA_FFI_Error *pack_and_multiply(XLA_FFI_CallFrame *frame, Product *p, i64 floats, Task *first, i64 firsts,
                                        Task *second, i64 seconds, i64 thread_floats) {
  p->packed = allocate(floats);
  if (!p->packed) return out_of_memory(frame, floats);
  XLA_FFI_Error *error = run_both(frame, p, first, firsts, second, seconds, thread_floats);
  free(p->packed);
  return error;
}

// ---- y = x w ----

static void pack_rows(const void *data, i64 t, float *memory) {
  const Product *p = data;
  i64 first = t * ROWS, length = ceil_div(p->inputs, BLOCK) * BLOCK;
  pack_tile(p->x + first * p->inputs, p->inputs, min(ROWS, p->rows - first), p->inputs, p->packed + first * length);
}

static void product_panel(const void *data, i64 n, float *panel) {
  const Product *p = data;
  i64 length = ceil_div(p->inputs, BLOCK) * BLOCK, valid = min(COLUMNS, p->outputs - n * COLUMNS);
  for (i64 i = 0; i < p->inputs; i += DEPTH) {
    i64 depth = min(DEPTH, p->inputs - i);
    pack_panel(p->w + i * p->outputs, depth, p->outputs, n * COLUMNS, panel);
    i64 next = min(DEPTH, p->inputs - i - depth), done = 0;
    for (i64 r = 0; r < p->rows; r += ROWS) {
      i64 count = min(ROWS, p->rows - r);
      for (; done < next * (r + count) / p->rows; done++)
        for (i64 v = 0; v < COLUMNS; v += 16)
          __builtin_prefetch(p->w + (i + depth + done) * p->outputs + n * COLUMNS + v, 0, 2);
      multiply_tile(count, depth, p->packed + r * length + i * count, panel, p->y + r * p->outputs + n * COLUMNS,
                    p->outputs, valid, i);
    }
  }
}

static XLA_FFI_Error *multiply_dense(XLA_FFI_CallFrame *frame, Product *p) {
  return pack_and_multiply(frame, p, p->rows * ceil_div(p->inputs, BLOCK) * BLOCK, pack_rows, ceil_div(p->rows, ROWS),
                           product_panel, ceil_div(p->outputs, COLUMNS), DEPTH * COLUMNS);
}

// ---- g w^T, computed as the transpose of w g^T, so that w is read in memory order ----

static void pack_gradient_transposed(const void *data, i64 n, float *memory) {
  const Product *p = data;
  pack_transposed(p->y, p->outputs, p->rows, n * COLUMNS, p->packed + n * p->outputs * COLUMNS);
}

static void input_gradient_tiles(const void *data, i64 task, float *tiles) {
  const Product *p = data;
  i64 first = task * TILES * ROWS, lines = min(TILES * ROWS, p->inputs - first);
  i64 length = ceil_div(p->outputs, BLOCK) * BLOCK;
  float transposed[TILES * ROWS * COLUMNS];
  for (i64 i = 0; i < lines; i += ROWS)
    pack_tile(p->w + (first + i) * p->outputs, p->outputs, min(ROWS, lines - i), p->outputs, tiles + i * length);
  for (i64 b = 0; b < p->rows; b += COLUMNS) {
    for (i64 i = 0; i < lines; i += ROWS)
      multiply_tile(min(ROWS, lines - i), p->outputs, tiles + i * length, p->packed + b * p->outputs,
                    transposed + i * COLUMNS, COLUMNS, COLUMNS, 0);
    for (i64 c = 0; c < min(COLUMNS, p->rows - b); c++)
      for (i64 i = 0; i < lines; i++) p->x[(b + c) * p->inputs + first + i] = transposed[i * COLUMNS + c];
  }
}

static XLA_FFI_Error *input_gradient_dense(XLA_FFI_CallFrame *frame, Product *p) {
  i64 panels = ceil_div(p->rows, COLUMNS);
  return pack_and_multiply(frame, p, panels * p->outputs * COLUMNS, pack_gradient_transposed, panels,
                           input_gradient_tiles, ceil_div(p->inputs, TILES * ROWS),
                           TILES * ROWS * ceil_div(p->outputs, BLOCK) * BLOCK);
}

// ---- x^T g ----

static void pack_gradient(const void *data, i64 n, float *memory) {
  const Product *p = data;
  pack_panel(p->y, p->rows, p->outputs, n * COLUMNS, p->packed + n * p->rows * COLUMNS);
}

static void correlate_lines(const void *data, i64 task, float *columns) {
  const Product *p = data;
  i64 first = task * 3 * BLOCK, lines = min(3 * BLOCK, p->inputs - first), block = p->rows * BLOCK;
  float total[BLOCK * COLUMNS] __attribute__((aligned(64)));
  pack_tile(p->x + first, p->inputs, p->rows, lines, columns);
  for (i64 b = 0; b < lines; b += BLOCK)
    for (i64 o = 0; o < p->outputs; o += COLUMNS) {
      i64 valid = min(COLUMNS, p->outputs - o), count = min(BLOCK, lines - b);
      memset(total, 0, 4 * count * COLUMNS);
      correlate_block(4, count, 1, 1, p->rows, columns + b / BLOCK * block, 0, p->packed + o * p->rows, COLUMNS, total,
                      COLUMNS);
      for (i64 r = 0; r < count; r++) {
        float *to = p->w + (first + b + r) * p->outputs + o;
        if (valid == COLUMNS && (uintptr_t)to % sizeof(full) == 0)
          for (int v = 0; v < COLUMNS; v += LANES)
            STREAM(*(full *)(total + r * COLUMNS + v), (full *)(to + v));
        else memcpy(to, total + r * COLUMNS, 4 * valid);
      }
    }
}

static XLA_FFI_Error *correlate_dense(XLA_FFI_CallFrame *frame, Product *p) {
  i64 panels = ceil_div(p->outputs, COLUMNS);
  return pack_and_multiply(frame, p, panels * p->rows * COLUMNS, pack_gradient, panels, correlate_lines,
                           ceil_div(p->inputs, 3 * BLOCK), 3 * p->rows * BLOCK);
}

// Products of a dense layer: y = x w, and the gradients x^T g and g w^T, for x [B, I], w [I, O] and g [B, O]. The order
// of all sums depends on the shapes alone, not on the number of threads.

#define COLUMNS (4 * LANES)     // Of a panel.
#define ROWS (TILE / 4)         // Of a tile: what stays in registers beside a panel.
#define DEPTH 512               // Lines of a panel that are multiplied at a time: they stay in the second-level cache.
#define TILES 8                 // Of a task.

typedef struct {
  i64 rows, inputs, outputs;
  const float *x, *w, *gradient;
  float *tiles;                 // [tile][block of 16][row of tile][16]
  float *panels;                // [panel][line][COLUMNS]
  float *result;
} Product;

typedef float full __attribute__((vector_size(4 * LANES), may_alias));
static _Thread_local Room tile_room, panel_room;

// Tile `n` of rows [count][length], in blocks of 16.
static void pack_tile(const float *from, i64 count, i64 length, float *to) {
  for (i64 b = 0; b < length; b += BLOCK)
    for (i64 r = 0; r < count; r++)
      for (i64 c = 0; c < BLOCK; c += LANES, to += LANES)
        *(vector *)to = load(from + r * length + b + c, length - b - c);
}

// Columns `first` to first + COLUMNS of [lines][length], with zeros beyond them.
static void pack_panel(const float *from, i64 lines, i64 length, i64 first, float *to) {
  for (i64 n = 0; n < lines; n++)
    for (i64 v = first; v < first + COLUMNS; v += LANES, to += LANES)
      *(vector *)to = load(from + n * length + v, length - v);
}

// The same of its transpose, where [lines][length] is [columns][lines].
static void pack_turned(const float *from, i64 lines, i64 length, i64 first, float *to) {
  for (i64 n = 0; n < lines; n += BLOCK)
    for (i64 v = 0; v < COLUMNS; v++)
      for (i64 c = n; c < least(n + BLOCK, lines); c++)
        to[c * COLUMNS + v] = first + v < length ? from[(first + v) * lines + c] : 0;
}

// A tile by a panel, over `length` products.
static void multiply_tile(i64 count, i64 length, const float *tile, const float *panel, float *to, i64 width, i64 valid, i64 more) {
  Taps taps = {.tall = 1, .wide = 1, .channels = length, .block = count * BLOCK, .right = 1};
  multiply_4(count, &taps, tile, panel, to, width, valid, more);
}

// ---- y = x w ----

static void pack_rows(const void *data, i64 t) {
  const Product *p = data;
  i64 first = t * ROWS, length = parts(p->inputs, BLOCK) * BLOCK;
  pack_tile(p->x + first * p->inputs, least(ROWS, p->rows - first), p->inputs, p->tiles + first * length);
}

static void product_panel(const void *data, i64 n) {
  const Product *p = data;
  float *panel = keep(&panel_room, DEPTH * COLUMNS);
  i64 length = parts(p->inputs, BLOCK) * BLOCK, valid = least(COLUMNS, p->outputs - n * COLUMNS);
  for (i64 i = 0; i < p->inputs; i += DEPTH) {
    i64 depth = least(DEPTH, p->inputs - i);
    pack_panel(p->w + i * p->outputs, depth, p->outputs, n * COLUMNS, panel);
    i64 next = least(DEPTH, p->inputs - i - depth), done = 0;
    for (i64 r = 0; r < p->rows; r += ROWS) {
      i64 count = least(ROWS, p->rows - r);
      for (; done < next * (r + count) / p->rows; done++)
        for (i64 v = 0; v < COLUMNS; v += 16)
          __builtin_prefetch(p->w + (i + depth + done) * p->outputs + n * COLUMNS + v, 0, 2);
      multiply_tile(count, depth, p->tiles + r * length + i * count, panel, p->result + r * p->outputs + n * COLUMNS,
                    p->outputs, valid, i);
    }
  }
}

static void multiply_dense(XLA_FFI_CallFrame *frame, Product *p) {
  p->tiles = allocate(p->rows * parts(p->inputs, BLOCK) * BLOCK);
  run_both(frame, p, pack_rows, parts(p->rows, ROWS), product_panel, parts(p->outputs, COLUMNS));
  free(p->tiles);
}

// ---- g w^T: its transpose, w g^T, so that w is read as it lies ----

static void pack_gradient_turned(const void *data, i64 n) {
  const Product *p = data;
  pack_turned(p->gradient, p->outputs, p->rows, n * COLUMNS, p->panels + n * p->outputs * COLUMNS);
}

static void spread_tiles(const void *data, i64 task) {
  const Product *p = data;
  i64 first = task * TILES * ROWS, lines = least(TILES * ROWS, p->inputs - first), length = parts(p->outputs, BLOCK) * BLOCK;
  float *tiles = keep(&tile_room, TILES * ROWS * length), turned[TILES * ROWS * COLUMNS];
  for (i64 i = 0; i < lines; i += ROWS)
    pack_tile(p->w + (first + i) * p->outputs, least(ROWS, lines - i), p->outputs, tiles + i * length);
  for (i64 b = 0; b < p->rows; b += COLUMNS) {
    for (i64 i = 0; i < lines; i += ROWS)
      multiply_tile(least(ROWS, lines - i), p->outputs, tiles + i * length, p->panels + b * p->outputs,
                    turned + i * COLUMNS, COLUMNS, COLUMNS, 0);
    for (i64 c = 0; c < least(COLUMNS, p->rows - b); c++)
      for (i64 i = 0; i < lines; i++) p->result[(b + c) * p->inputs + first + i] = turned[i * COLUMNS + c];
  }
}

static void spread_dense(XLA_FFI_CallFrame *frame, Product *p) {
  i64 panels = parts(p->rows, COLUMNS);
  p->panels = allocate(panels * p->outputs * COLUMNS);
  run_both(frame, p, pack_gradient_turned, panels, spread_tiles, parts(p->inputs, TILES * ROWS));
  free(p->panels);
}

// ---- x^T g ----

static void pack_gradient(const void *data, i64 n) {
  const Product *p = data;
  pack_panel(p->gradient, p->rows, p->outputs, n * COLUMNS, p->panels + n * p->rows * COLUMNS);
}

static void correlate_lines(const void *data, i64 task) {
  const Product *p = data;
  i64 first = task * 3 * BLOCK, lines = least(3 * BLOCK, p->inputs - first), block = p->rows * BLOCK;
  float *columns = keep(&tile_room, 3 * block), total[BLOCK * COLUMNS] __attribute__((aligned(64)));
  for (i64 b = 0; b < lines; b += BLOCK)
    for (i64 r = 0; r < p->rows; r++)
      for (i64 c = 0; c < BLOCK; c += LANES)
        *(vector *)(columns + b / BLOCK * block + r * BLOCK + c) = load(p->x + r * p->inputs + first + b + c, lines - b - c);
  for (i64 b = 0; b < lines; b += BLOCK)
    for (i64 o = 0; o < p->outputs; o += COLUMNS) {
      i64 valid = least(COLUMNS, p->outputs - o), count = least(BLOCK, lines - b);
      memset(total, 0, 4 * count * COLUMNS);
      correlate_block(4, count, 1, 1, p->rows, columns + b / BLOCK * block, 0, p->panels + o * p->rows, COLUMNS, total,
                      COLUMNS);
      for (i64 r = 0; r < count; r++) {
        float *to = p->result + (first + b + r) * p->outputs + o;
        if (valid == COLUMNS && (uintptr_t)to % sizeof(full) == 0)
          for (int v = 0; v < COLUMNS; v += LANES)
            __builtin_nontemporal_store(*(full *)(total + r * COLUMNS + v), (full *)(to + v));
        else memcpy(to, total + r * COLUMNS, 4 * valid);
      }
    }
}

static void correlate_dense(XLA_FFI_CallFrame *frame, Product *p) {
  i64 panels = parts(p->outputs, COLUMNS);
  p->panels = allocate(panels * p->rows * COLUMNS);
  run_both(frame, p, pack_gradient, panels, correlate_lines, parts(p->inputs, 3 * BLOCK));
  free(p->panels);
}

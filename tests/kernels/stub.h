// A stub of XLA: arrays, call frames, errors and a thread pool. Allocations can be made to fail.

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#define POOL 3  // Number of threads; with the calling thread, more than the cores of a small machine.

#ifdef __SANITIZE_ADDRESS__
#define GUARD 0  // The sanitizer detects accesses outside an array.
#else
#define GUARD 64  // Number of floats on each side of an array that must keep their values.
#endif
#define GUARD_VALUE 12345.0f

static void stop(const char *what) {
  printf("FAILED: %s\n", what);
  exit(1);
}

// ---- Random numbers (xorshift), one sequence per thread ----

static _Thread_local uint64_t random_state = 88172645463325252u;

static int64_t draw(int64_t low, int64_t high) {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return low + (int64_t)(random_state % (uint64_t)(high - low + 1));
}

#define PICK(...) ((int64_t[]){__VA_ARGS__}[draw(0, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t) - 1)])

// ---- Memory of the kernels ----

static int64_t allocations_left = INT64_MAX;  // After these, one allocation fails, or all do.
static int one_fails;

static int may_allocate(void) {
  int64_t left = __atomic_sub_fetch(&allocations_left, 1, __ATOMIC_RELAXED);
  return left >= 0 || (left < -1 && __atomic_load_n(&one_fails, __ATOMIC_ACQUIRE));
}
static void *kernel_malloc(size_t size) { return may_allocate() ? malloc(size) : NULL; }
static void *kernel_calloc(size_t count, size_t size) { return may_allocate() ? calloc(count, size) : NULL; }

static void *kernel_aligned_alloc(size_t alignment, size_t size) {
  void *memory = may_allocate() ? aligned_alloc(alignment, size) : NULL;
  if (memory) memset(memory, 0xff, size);  // Fill with NaN, to detect results that depend on it.
  return memory;
}

// ---- Arrays ----

typedef struct {
  XLA_FFI_Buffer buffer;
  int64_t dims[5], floats;
  float *block;
} Array;

static float *values(const Array *a) { return a->buffer.data; }

// Returns an array of multiples of 1/8 between -1 and 1, so that sums of products are exact in float32. It is aligned
// to one float only, as XLA's arrays may be.
static Array *array(int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
  Array *made = calloc(1, sizeof *made);
  int64_t dims[4] = {a, b, c, d}, shift = draw(0, 3);
  memcpy(made->dims, dims, sizeof dims);
  made->floats = 1;
  for (int n = 0; n < rank; n++) made->floats *= dims[n];
  made->block = malloc(4 * (made->floats + shift + 2 * GUARD));
  for (int64_t n = 0; n < made->floats + shift + 2 * GUARD; n++) made->block[n] = GUARD_VALUE;
  made->buffer = (XLA_FFI_Buffer){XLA_FFI_Buffer_STRUCT_SIZE, NULL, XLA_FFI_DataType_F32, made->block + shift + GUARD,
                                  rank, made->dims};
  for (int64_t n = 0; n < made->floats; n++) values(made)[n] = draw(-8, 8) / 8.0f;
  return made;
}

static void clear(Array *a) {
  for (int64_t n = 0; n < a->floats; n++) values(a)[n] = NAN;
}

static void release(Array *a) {
  if (!a) return;
  for (float *at = a->block; at < values(a); at++)
    if (*at != GUARD_VALUE) stop("a kernel wrote before the start of an array");
  for (int64_t n = 0; n < GUARD; n++)
    if (values(a)[a->floats + n] != GUARD_VALUE) stop("a kernel wrote past the end of an array");
  free(a->block);
  free(a);
}

// ---- Errors ----

struct XLA_FFI_Error {
  char message[512];
  XLA_FFI_Error_Code code;
};

static XLA_FFI_Error *create_error(XLA_FFI_Error_Create_Args *args) {
  XLA_FFI_Error *error = malloc(sizeof *error);
  snprintf(error->message, sizeof error->message, "%s", args->message);
  error->code = args->errc;
  return error;
}

static void destroy_error(XLA_FFI_Error_Destroy_Args *args) { free(args->error); }

// ---- Threads ----

static struct {
  pthread_mutex_t mutex;
  pthread_cond_t more;
  pthread_t threads[POOL];
  XLA_FFI_Task *tasks[4096];
  void *data[4096];
  int first, count, ended;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

static _Thread_local int64_t pool_threads = POOL + 1;  // Pool size reported to this thread's kernels; 0: no pool.

static XLA_FFI_Error *count_threads(XLA_FFI_ThreadPool_NumThreads_Args *args) {
  if (!pool_threads) return create_error(&(XLA_FFI_Error_Create_Args){.message = "no pool"});
  *args->num_threads = pool_threads;
  return NULL;
}

static XLA_FFI_Error *schedule(XLA_FFI_ThreadPool_Schedule_Args *args) {
  if (pool_threads == 2) {  // The pool refuses, or runs the task immediately, as XLA may do.
    if (draw(0, 1)) return create_error(&(XLA_FFI_Error_Create_Args){.message = "refused"});
    args->task(args->data);
    return NULL;
  }
  pthread_mutex_lock(&pool.mutex);
  if (pool.count == 4096) stop("too many tasks");
  int at = (pool.first + pool.count++) % 4096;
  pool.tasks[at] = args->task, pool.data[at] = args->data;
  pthread_cond_signal(&pool.more);
  pthread_mutex_unlock(&pool.mutex);
  return NULL;
}

static void *work_of_pool(void *unused) {
  (void)unused;
  pthread_mutex_lock(&pool.mutex);
  for (;;) {
    while (!pool.count && !pool.ended) pthread_cond_wait(&pool.more, &pool.mutex);
    if (!pool.count) break;
    XLA_FFI_Task *task = pool.tasks[pool.first];
    void *data = pool.data[pool.first];
    pool.first = (pool.first + 1) % 4096, pool.count--;
    pthread_mutex_unlock(&pool.mutex);
    task(data);
    pthread_mutex_lock(&pool.mutex);
  }
  pthread_mutex_unlock(&pool.mutex);
  return NULL;
}

static void start_pool(void) {
  for (int n = 0; n < POOL; n++)
    if (pthread_create(&pool.threads[n], NULL, work_of_pool, NULL)) stop("cannot create a thread");
}

static void end_pool(void) {
  pthread_mutex_lock(&pool.mutex);
  pool.ended = 1;
  pthread_cond_broadcast(&pool.more);
  pthread_mutex_unlock(&pool.mutex);
  for (int n = 0; n < POOL; n++) pthread_join(pool.threads[n], NULL);
}

// ---- Calls ----

typedef struct {
  XLA_FFI_Handler *kernel;
  Array *operands[6], *results[2];
  int operand_count, result_count;
  const char *attribute;  // NULL if the kernel has none.
  int64_t window[4];      // The attribute's value if its name is window.
  float number;           // The attribute's value otherwise.
  const char *second;     // A second attribute, a number; NULL if there is none.
  float second_number;
} Call;

static const XLA_FFI_Api api = {
    .struct_size = XLA_FFI_Api_STRUCT_SIZE,
    .XLA_FFI_Error_Create = create_error,
    .XLA_FFI_Error_Destroy = destroy_error,
    .XLA_FFI_ThreadPool_NumThreads = count_threads,
    .XLA_FFI_ThreadPool_Schedule = schedule,
};

static XLA_FFI_Error *run(const Call *c) {
  XLA_FFI_ArgType arg_types[] = {[0 ... 5] = XLA_FFI_ArgType_BUFFER};
  XLA_FFI_RetType ret_types[] = {[0 ... 1] = XLA_FFI_RetType_BUFFER};
  int is_window = c->attribute && !strcmp(c->attribute, "window");
  XLA_FFI_AttrType attr_types[] = {is_window ? XLA_FFI_AttrType_ARRAY : XLA_FFI_AttrType_SCALAR,
                                   XLA_FFI_AttrType_SCALAR};
  XLA_FFI_ByteSpan name = {c->attribute, c->attribute ? strlen(c->attribute) : 0};
  XLA_FFI_ByteSpan second_name = {c->second, c->second ? strlen(c->second) : 0}, *names[] = {&name, &second_name};
  XLA_FFI_Array window = {XLA_FFI_DataType_S64, 4, (void *)c->window};
  XLA_FFI_Scalar number = {XLA_FFI_DataType_F32, (void *)&c->number};
  XLA_FFI_Scalar second = {XLA_FFI_DataType_F32, (void *)&c->second_number};
  void *attrs[] = {is_window ? (void *)&window : (void *)&number, &second};
  XLA_FFI_CallFrame frame = {
      .struct_size = XLA_FFI_CallFrame_STRUCT_SIZE,
      .api = &api,
      .stage = XLA_FFI_ExecutionStage_EXECUTE,
      .args = {XLA_FFI_Args_STRUCT_SIZE, NULL, c->operand_count, arg_types, (void **)c->operands},
      .rets = {XLA_FFI_Rets_STRUCT_SIZE, NULL, c->result_count, ret_types, (void **)c->results},
      .attrs = {XLA_FFI_Attrs_STRUCT_SIZE, NULL, c->attribute ? 1 + (c->second != NULL) : 0, attr_types,
                names, attrs},
  };
  return c->kernel(&frame);
}

static void run_or_stop(const Call *c) {
  XLA_FFI_Error *error = run(c);
  if (error) stop(error->message);
}

static void release_arrays(Call *c) {
  for (int n = 0; n < c->operand_count; n++) release(c->operands[n]);
  for (int n = 0; n < c->result_count; n++) release(c->results[n]);
}

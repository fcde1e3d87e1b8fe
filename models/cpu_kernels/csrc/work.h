// Shared by all kernels: vectors, the description of a convolution, tasks on XLA's threads, memory.

#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#if defined(__AVX512F__)
#define LANES 16
#define TILE 24  // Vector registers for results; the others are for operands.
#elif defined(__AVX2__)
#define LANES 8
#define TILE 12
#else
#define LANES 4
#define TILE 24
#endif
#define BLOCK 16  // Channels per block of packed inputs.
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));
typedef int64_t i64;

INLINE i64 min(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 max(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
INLINE vector broadcast(float x) { return x - (vector){}; }

typedef struct {
  i64 batch, height, width, channels;  // Of the images; `channels` are convolved.
  i64 pixel;                           // Floats between neighbouring pixels of an image, at least `channels`.
  i64 rows, columns, outputs;          // Size and channels of the result, or of its gradient.
  i64 tall, wide;                      // Height and width of the kernel.
  i64 down, right, top, left;          // Vertical and horizontal stride; padding above and to the left.
  i64 blocks;                          // Number of blocks of channels.
  i64 group, groups;                   // Output channels per group (those of a tile in registers); number of groups.
  const float *x, *kernel, *gradient;
  const float *scale, *shift;          // Per channel: max(0, scale x + shift) is convolved. NULL: x itself.
  float *result;
} Work;

INLINE void set_groups(Work *w, i64 vectors) {
  w->group = vectors * LANES;
  w->groups = ceil_div(w->outputs, w->group);
}

// Loads a vector: `valid` floats at `from`, then zeros.
INLINE vector load(const float *from, i64 valid) {
  if (valid >= LANES) return *(const vector *)from;
  vector loaded = {};
  for (i64 n = 0; n < valid; n++) loaded[n] = from[n];
  return loaded;
}

INLINE void store(float *to, vector x, i64 valid) {
  if (valid >= LANES) *(vector *)to = x;
  else for (i64 n = 0; n < valid; n++) to[n] = x[n];
}

// The input of the convolution: the channels of a pixel from `c` on.
INLINE vector input(const Work *w, const float *pixel, i64 c) {
  i64 valid = w->channels - c;
  vector x = load(pixel + c, valid);
  if (!w->scale) return x;
  vector value = x * load(w->scale + c, valid) + load(w->shift + c, valid);
  return (vector)((bits)value & ~(bits)(value < 0));  // A NaN stays one: elementwise_max would make it 0.
}

// ---- Tasks on XLA's threads ----

typedef void Task(const void *work, i64 task);

typedef struct {
  const void *work;
  Task *first, *second;    // Tasks of the second phase begin when all of the first are done.
  i64 firsts, tasks;       // Number of tasks of the first phase, and of both.
  i64 next, done, users;
} Job;

static void wait_for(Job *job, i64 tasks) {
  while (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) < tasks) sched_yield();
}

static void take_part(void *data) {
  Job *job = data;
  for (i64 task; (task = __atomic_fetch_add(&job->next, 1, __ATOMIC_ACQ_REL)) < job->tasks;) {
    if (task < job->firsts) job->first(job->work, task);
    else wait_for(job, job->firsts), job->second(job->work, task - job->firsts);
    __atomic_fetch_add(&job->done, 1, __ATOMIC_ACQ_REL);
  }
  if (__atomic_sub_fetch(&job->users, 1, __ATOMIC_ACQ_REL) == 0) free(job);
}

// Runs `firsts` tasks and then `seconds` tasks on the calling thread and on the threads of XLA's pool. A thread that
// starts late finds no task left.
static void run_both(XLA_FFI_CallFrame *frame, const void *work, Task *first, i64 firsts, Task *second, i64 seconds) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&count);
  if (error) {
    XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
    frame->api->XLA_FFI_Error_Destroy(&destroy);
    threads = 1;
  }
  Job *job = malloc(sizeof *job);
  i64 helpers = max(0, min(threads, max(firsts, seconds)) - 1);
  *job = (Job){work, first, second, firsts, firsts + seconds, 0, 0, 2 + helpers};  // Two uses are the caller's.
  for (i64 i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args schedule = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, take_part, job};
    error = frame->api->XLA_FFI_ThreadPool_Schedule(&schedule);
    if (error) {
      XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
      frame->api->XLA_FFI_Error_Destroy(&destroy);
      __atomic_sub_fetch(&job->users, 1, __ATOMIC_ACQ_REL);
    }
  }
  take_part(job);
  wait_for(job, firsts + seconds);
  if (__atomic_sub_fetch(&job->users, 1, __ATOMIC_ACQ_REL) == 0) free(job);
}

static void run_tasks(XLA_FFI_CallFrame *frame, Task *run, const void *work, i64 tasks) {
  run_both(frame, work, run, tasks, NULL, 0);
}

// ---- Memory ----

// Allocates `floats` floats, aligned to a cache line. Released with free.
static float *allocate(i64 floats) { return aligned_alloc(64, ceil_div(4 * floats, 64) * 64); }

typedef struct {
  float *floats;
  i64 size;
} Scratch;

// Returns a thread's scratch memory of at least `floats` floats. It is kept between tasks, because page faults would
// take longer than filling it.
static float *scratch(Scratch *memory, i64 floats) {
  if (memory->size < floats) {
    free(memory->floats);
    *memory = (Scratch){allocate(floats), floats};
  }
  return memory->floats;
}

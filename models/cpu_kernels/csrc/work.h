// What the kernels share: vectors, the description of one convolution, tasks on XLA's threads, memory.

#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#if defined(__AVX512F__)
#define LANES 16
#define TILE 24  // Vector registers that hold results; the others hold operands.
#elif defined(__AVX2__)
#define LANES 8
#define TILE 12
#else
#define LANES 4
#define TILE 24
#endif
#define BLOCK 16  // Channels of a block of a strip or of transformed tiles.
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int64_t i64;

INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 most(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 parts(i64 a, i64 b) { return (a + b - 1) / b; }
INLINE vector broadcast(float x) { return x - (vector){}; }

typedef struct {
  i64 batch, height, width, channels;  // Of the image.
  i64 pixel;                           // Floats from one pixel of the image to the next: channels or more.
  i64 rows, columns, outputs;          // Of the result (of its gradient).
  i64 tall, wide;                      // The kernel.
  i64 down, right, top, left;          // Strides; padding above and to the left.
  i64 blocks;                          // Of channels.
  i64 group, groups;                   // Output channels of a tile in registers, and how many such groups.
  const float *x, *kernel, *gradient;
  const float *scale, *shift;          // By channel: max(0, scale x + shift) is convolved; NULL: x itself.
  float *result;
} Work;

INLINE void set_groups(Work *w, i64 vectors) {
  w->group = vectors * LANES;
  w->groups = parts(w->outputs, w->group);
}

// `valid` floats from `from`, then zeros.
INLINE vector load(const float *from, i64 valid) {
  if (valid >= LANES) return *(const vector *)from;
  vector found = {};
  for (i64 n = 0; n < valid; n++) found[n] = from[n];
  return found;
}

INLINE void store(float *to, vector x, i64 valid) {
  if (valid >= LANES) *(vector *)to = x;
  else for (i64 n = 0; n < valid; n++) to[n] = x[n];
}

// What is convolved: a pixel's channels from `c` on.
INLINE vector input(const Work *w, const float *pixel, i64 c) {
  i64 valid = w->channels - c;
  vector x = load(pixel + c, valid);
  return w->scale ? __builtin_elementwise_max(x * load(w->scale + c, valid) + load(w->shift + c, valid), (vector){}) : x;
}

// ---- Tasks on XLA's threads ----

typedef void Task(const void *work, i64 task);

typedef struct {
  const void *work;
  Task *first, *second;    // The second's tasks begin when all of the first's are done.
  i64 firsts, tasks;       // How many of the first, and of both.
  i64 next, done, users;
} Job;

static void wait_for(Job *job, i64 tasks) {
  while (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) < tasks) sched_yield();  // On an idle processor it returns at once.
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

// Runs `firsts` tasks, and then `seconds`, on the calling thread and on those of XLA's pool that come in time; a late one
// finds nothing to do.
static void run_both(XLA_FFI_CallFrame *frame, const void *work, Task *first, i64 firsts, Task *second, i64 seconds) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&count);
  if (error) {
    XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
    frame->api->XLA_FFI_Error_Destroy(&destroy);
    threads = 1;
  }
  Job *job = malloc(sizeof *job);
  i64 helpers = most(0, least(threads, most(firsts, seconds)) - 1);
  *job = (Job){work, first, second, firsts, firsts + seconds, 0, 0, 2 + helpers};  // One use is this function's own.
  for (i64 i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args schedule = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, take_part, job};
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

// `floats` floats that begin with a cache line. Freed with free.
static float *allocate(i64 floats) { return aligned_alloc(64, parts(4 * floats, 64) * 64); }

typedef struct {
  float *floats;
  i64 size;
} Room;

// A thread's own memory of at least `floats` floats, kept from task to task: new pages would cost more than the copy.
static float *keep(Room *room, i64 floats) {
  if (room->size < floats) {
    free(room->floats);
    *room = (Room){allocate(floats), floats};
  }
  return room->floats;
}

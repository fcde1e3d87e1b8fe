// Runs tasks on the threads of XLA's pool, and manages memory.

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#ifndef SPIN_NANOSECONDS
#define SPIN_NANOSECONDS 50000  // How long a thread spins before it sleeps: about the time of a wake-up.
#endif
#ifndef KEPT
#define KEPT (1 << 20)  // Maximum floats of memory that a thread keeps between calls.
#endif

#define FEW_TASKS 8  // Fewer tasks are divided further, to occupy all cores. Sums depend on this, not on the cores.

// ---- Memory ----

// Allocates `floats` floats, aligned to a cache line. Release them with free. Returns NULL if the allocation fails.
static float *allocate(i64 floats) { return aligned_alloc(64, (4 * floats + 63) / 64 * 64); }

typedef struct {
  float *floats;
  i64 size;
} Memory;

static pthread_key_t memory_key;
static pthread_once_t memory_once = PTHREAD_ONCE_INIT;
static int has_memory_key;

static void free_memory(void *data) {
  Memory *memory = data;
  free(memory->floats);
  free(memory);
}

static void create_memory_key(void) { has_memory_key = pthread_key_create(&memory_key, free_memory) == 0; }

// Returns this thread's memory of at least `floats` floats, or NULL if the allocation fails. The thread keeps the
// memory between calls, because page faults would take longer than filling it, and releases it when it ends.
static float *thread_memory(i64 floats) {
  pthread_once(&memory_once, create_memory_key);
  if (!has_memory_key) return NULL;
  Memory *memory = pthread_getspecific(memory_key);
  if (!memory) {
    memory = calloc(1, sizeof *memory);
    if (!memory) return NULL;
    if (pthread_setspecific(memory_key, memory)) {
      free(memory);
      return NULL;
    }
  }
  if (memory->size < floats || !memory->floats) {
    free(memory->floats);
    i64 size = floats > 16 ? floats : 16;
    memory->floats = allocate(size);
    memory->size = memory->floats ? size : 0;
  }
  return memory->floats;
}

// Releases this thread's memory if it is larger than a thread may keep.
static void trim_thread_memory(void) {
  Memory *memory = pthread_getspecific(memory_key);
  if (memory->size <= KEPT) return;
  free(memory->floats);
  *memory = (Memory){};
}

// ---- Tasks ----

// `memory` belongs to the thread and has the size given to run_both. Its content is undefined.
typedef void Task(const void *work, i64 task, float *memory);

typedef struct {
  const void *work;
  Task *first, *second;    // Tasks of the second phase begin when all tasks of the first are done.
  i64 firsts, tasks;       // Number of tasks of the first phase, and of both.
  i64 floats;              // Memory of each thread.
  i64 next, done, users;   // Atomic.
  pthread_mutex_t mutex;   // Mutex and condition are used only to sleep after SPIN_NANOSECONDS and to wake sleepers.
  pthread_cond_t phase_done;
} Job;

static i64 nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

// Waits until `tasks` tasks are done. Spins briefly, because waking a thread takes longer than most waits, and then
// sleeps, because on a busy machine the thread that it waits for may need this core.
static void wait_for(Job *job, i64 tasks) {
  if (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) >= tasks) return;
  for (i64 end = nanoseconds() + SPIN_NANOSECONDS; nanoseconds() < end; sched_yield())
    if (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) >= tasks) return;
  pthread_mutex_lock(&job->mutex);
  while (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) < tasks) pthread_cond_wait(&job->phase_done, &job->mutex);
  pthread_mutex_unlock(&job->mutex);
}

static void take_tasks(Job *job, float *memory) {
  for (i64 task; (task = __atomic_fetch_add(&job->next, 1, __ATOMIC_ACQ_REL)) < job->tasks;) {
    if (task < job->firsts) job->first(job->work, task, memory);
    else wait_for(job, job->firsts), job->second(job->work, task - job->firsts, memory);
    i64 done = __atomic_add_fetch(&job->done, 1, __ATOMIC_ACQ_REL);
    if (done != job->firsts && done != job->tasks) continue;
    pthread_mutex_lock(&job->mutex);  // A thread that is about to sleep holds the mutex until it sleeps.
    pthread_cond_broadcast(&job->phase_done);
    pthread_mutex_unlock(&job->mutex);
  }
  trim_thread_memory();
}

static void leave(Job *job) {
  if (__atomic_sub_fetch(&job->users, 1, __ATOMIC_ACQ_REL)) return;
  pthread_cond_destroy(&job->phase_done);
  pthread_mutex_destroy(&job->mutex);
  free(job);
}

// Run by a thread of the pool. A thread that starts late finds no tasks left; a thread without memory takes none.
static void help(void *data) {
  Job *job = data;
  if (__atomic_load_n(&job->next, __ATOMIC_ACQUIRE) < job->tasks) {
    float *memory = thread_memory(job->floats);
    if (memory) take_tasks(job, memory);
  }
  leave(job);
}

// Returns whether a call of XLA's API succeeded. Destroys the error if it did not.
static int succeeded(XLA_FFI_CallFrame *frame, XLA_FFI_Error *error) {
  if (!error) return 1;
  XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  frame->api->XLA_FFI_Error_Destroy(&destroy);
  return 0;
}

// Runs `firsts` tasks and then `seconds` tasks on the calling thread and on the threads of XLA's pool, with `floats`
// floats of memory for each thread.
static XLA_FFI_Error *run_both(XLA_FFI_CallFrame *frame, const void *work, Task *first, i64 firsts, Task *second,
                               i64 seconds, i64 floats) {
  float *memory = thread_memory(floats);
  Job *job = memory ? malloc(sizeof *job) : NULL;
  if (!job) return out_of_memory(frame, floats);
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  if (!succeeded(frame, frame->api->XLA_FFI_ThreadPool_NumThreads(&count))) threads = 1;
  i64 most = firsts > seconds ? firsts : seconds, helpers = (threads < most ? threads : most) - 1;
  if (helpers < 0) helpers = 0;
  *job = (Job){.work = work, .first = first, .second = second, .firsts = firsts, .tasks = firsts + seconds,
               .floats = floats, .users = 1 + helpers,
               .mutex = PTHREAD_MUTEX_INITIALIZER, .phase_done = PTHREAD_COND_INITIALIZER};
  // XLA may run a helper immediately on this thread; it then takes all tasks, and `memory` is not used afterwards.
  for (i64 i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args schedule = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help, job};
    if (!succeeded(frame, frame->api->XLA_FFI_ThreadPool_Schedule(&schedule))) leave(job);
  }
  take_tasks(job, memory);
  wait_for(job, firsts + seconds);
  leave(job);
  return NULL;
}

static XLA_FFI_Error *run_tasks(XLA_FFI_CallFrame *frame, Task *run, const void *work, i64 tasks, i64 floats) {
  return run_both(frame, work, run, tasks, NULL, 0, floats);
}

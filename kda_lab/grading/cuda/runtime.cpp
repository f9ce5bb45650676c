// The GPU that an exercise sees on a machine without one.
//
// Blocks run one after the other. The threads of a block are fibers: each runs to its next barrier or warp
// step, then the next one runs, so that barriers are real and a barrier that somebody misses is found, not
// waited for. The exercise is compiled with -fsanitize=thread and -fsanitize=bounds, but linked with the
// hooks below instead of the sanitizers' own: every access to memory comes here, and is checked for its
// bounds and for races. An access is a race when another thread touched the same bytes, one of the two
// writes, and no barrier stands between them.
//
// This file is compiled without sanitizers; nothing in it may need a constructor (worker.py loads the
// library before it locks itself in, and loading must run no code).

#include <csignal>
#include <initializer_list>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>

#include "kda_exercise.cuh"

#undef printf
#undef mma_m16n8k16

kda_index threadIdx, blockIdx, blockDim, gridDim;

extern "C" {
extern const kda::Kernel kda_kernels[];  // made for each library; ends with a null name
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern char __start_kda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_kda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace {

constexpr int kMaxThreads = 1024, kStack = 128 << 10, kPage = 4096;
constexpr int kMaxArguments = 24, kSlots = kMaxArguments + 1;  // the last is dynamic shared memory
constexpr int kSlotShift = 35;  // 32 GB of addresses for each array: a wrong index stays next to it
constexpr unsigned char kPoison = 0xff;  // NaN in every floating format, -1 as an integer

enum Code { kDone, kNotAttempted, kOutOfBounds, kRace, kBarrier, kOverflow, kCrash, kMisuse };

// Mirrored by worker.py.
struct Argument {
  void *data;
  int64_t bytes;  // -1: a number, passed by value
  int32_t item;
  int32_t written;  // whether the kernel may write it
  const char *name;
};
struct Report {
  int32_t code, line;
  int64_t pc, shared;  // offsets in the library, in shared memory; -1 for none
  char text[600];
  char printed[4000];
};

// Who touched a byte last: a thread of the launch, how many barriers its block and warp had passed, and its
// own clock.
struct Touch {
  int thread, block_step, warp_step, clock;
};
struct Cell {
  Touch write, read[2];  // of the readers two are kept, so that one differs from any writer
};

struct Region {
  char *base;
  int64_t bytes;
  int item;
  bool tracked;
  Cell *cells;
  const char *name;
};

enum class State { kReady, kAtBarrier, kInStep, kAtMbarrier, kReturned };

struct Fiber {
  ucontext_t context;
  State state;
  int line;
  // a warp's step
  const char *name;
  unsigned mask;
  kda::Together together;
  kda::Lane lane;
  // an mbarrier
  const uint64_t *barrier;
  uint32_t parity;
  bool asked;  // its last question was answered with "not yet"
};

struct Copy {
  void *to;
  const void *from;
  uint32_t bytes;
  uint64_t *barrier;
};
constexpr int kMaxCopies = 256;
Copy flying[kMaxCopies];
int copies;

// Mbarriers order threads pair by pair, so a block that has one keeps vector clocks. A thread's clock counts
// how often it has told others what it had done: arrived, started a copy, met them at a barrier.
constexpr int kMaxMbarriers = 256;
const uint64_t *mbarriers[kMaxMbarriers];
int mbarrier_count;
int *clocks;           // [threads][threads]: up to which clock of the second the first knows its work
int *mbarrier_clocks;  // [2][kMaxMbarriers][threads]: the same, as its phases that are over bring, and the open one

struct Unfenced {
  const uint64_t *barrier;
  int thread;
};
constexpr int kMaxUnfenced = 256;
Unfenced unfenced[kMaxUnfenced];  // initialised, and no fence yet
int unfenced_barriers;

Report *report;
Region slots[kSlots], static_shared;
char *arena;
char *stacks;
Fiber fibers[kMaxThreads];
int threads, current, block_number, block_step, warp_step[kMaxThreads / 32];
bool running;  // inside a kernel: accesses are checked
ucontext_t scheduler, end;  // who runs the next fiber; where a launch ends, whatever stack it ends on
void (*kernel_start)(void **);
void **kernel_arguments;
char signal_stack[64 << 10] __attribute__((aligned(16)));
struct sigaction old_actions[5];
constexpr int kSignals[5] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};

// ---- words -----------------------------------------------------------------------------------------------

const char *place(int thread, int block) {
  static char text[2][100];
  static int turn;
  char *to = text[turn ^= 1];
  const unsigned x = thread % blockDim.x, y = thread / blockDim.x % blockDim.y;
  if (blockDim.y * blockDim.z == 1) snprintf(to, 100, "thread %u of block %d", x, block);
  else snprintf(to, 100, "thread (%u, %u) of block %d", x, y, block);
  return to;
}

const char *here() { return place(current, block_number); }

[[noreturn]] void leave() {
  running = false;
  setcontext(&end);
  abort();
}

[[noreturn]] void stop(Code code, int line, const void *pc, const char *format, ...) {
  running = false;
  if (report->code == kDone) {
    report->code = code, report->line = line;
    report->pc = pc ? static_cast<const char *>(pc) - __ehdr_start : -1;
    va_list list;
    va_start(list, format);
    vsnprintf(report->text, sizeof report->text, format, list);
    va_end(list);
  }
  leave();
}

// ---- who knows of what -----------------------------------------------------------------------------------

int *clock_of(int thread) { return clocks + int64_t(thread) * threads; }
int *clock_of(int mbarrier, bool open) { return mbarrier_clocks + (int64_t(open) * kMaxMbarriers + mbarrier) * threads; }

int find_mbarrier(const uint64_t *barrier) {
  int i = mbarrier_count - 1;
  while (i >= 0 && mbarriers[i] != barrier) --i;
  return i;
}

void join(int *to, const int *from) {
  for (int i = 0; i < threads; ++i) to[i] = to[i] < from[i] ? from[i] : to[i];
}

// The `count` threads from `first` on that `mask` names (all, where there are more than 32) meet.
void meet(int first, int count, unsigned mask) {
  if (!mbarrier_count) return;
  static int met[kMaxThreads];
  memset(met, 0, sizeof met);
  for (int i = 0; i < count; ++i)
    if (count > 32 || mask >> i & 1) join(met, clock_of(first + i));
  for (int i = 0; i < count; ++i)
    if (count > 32 || mask >> i & 1) {
      memcpy(clock_of(first + i), met, threads * sizeof(int));
      ++clock_of(first + i)[first + i];
    }
}

// What this thread has done is known to whoever waits for the open phase.
void tell(const uint64_t *barrier) {
  const int i = find_mbarrier(barrier);
  if (i >= 0) join(clock_of(i, true), clock_of(current));
  if (i >= 0) ++clock_of(current)[current];
}

// ---- every access to memory ------------------------------------------------------------------------------

bool apart(const Touch &a, const Touch &b) {  // no barrier between them
  if (a.thread < 0 || a.thread == b.thread) return false;
  if (a.thread / kMaxThreads != b.thread / kMaxThreads) return true;
  if (a.block_step != b.block_step) return false;
  if (mbarrier_count && clock_of(b.thread % kMaxThreads)[a.thread % kMaxThreads] >= a.clock) return false;
  return a.thread / 32 != b.thread / 32 || a.warp_step == b.warp_step;
}

void race(const Region &r, const char *at, const char *first, int other, const char *second,
          const void *pc) {
  const int64_t byte = at - r.base;
  const char *who = place(other % kMaxThreads, other / kMaxThreads);
  report->shared = &r == &static_shared ? byte : -1;
  if (other / kMaxThreads != block_number)
    stop(kRace, 0, pc, "%s %s %s[%lld], which %s %s: blocks run in any order", here(), second, r.name,
         static_cast<long long>(byte / r.item), who, first);
  stop(kRace, 0, pc, "%s %s %s[%lld], which %s %s, and no barrier stands between the two", here(), second,
       r.name, static_cast<long long>(byte / r.item), who, first);
}

void track(const Region &r, const char *at, int bytes, bool write, const void *pc) {
  const Touch now{block_number * kMaxThreads + current, block_step, warp_step[current / 32],
                  mbarrier_count ? clock_of(current)[current] : 1};
  for (int i = 0; i < bytes; ++i) {
    Cell &cell = r.cells[at - r.base + i];
    if (apart(cell.write, now))
      race(r, at, "writes", cell.write.thread, write ? "writes" : "reads", pc);
    if (write) {
      for (const Touch &reader : cell.read)
        if (apart(reader, now)) race(r, at, "reads", reader.thread, "writes", pc);
      cell.write = now;
    } else if (cell.read[0].thread == now.thread || !apart(cell.read[0], now)) {
      cell.read[0] = now;
    } else {
      cell.read[1] = now;
    }
  }
}

// From the moment a bulk copy is started until its barrier says so, its destination holds anything.
void not_in_flight(const char *at, int bytes, bool write, const void *pc) {
  for (int i = 0; i < copies; ++i) {
    const char *to = static_cast<const char *>(flying[i].to);
    if (at >= to + flying[i].bytes || to >= at + bytes) continue;
    const bool dynamic = at < static_shared.base || at >= static_shared.base + static_shared.bytes;
    const Region &r = dynamic ? slots[kSlots - 1] : static_shared;
    report->shared = dynamic ? -1 : at - r.base;
    stop(kRace, 0, pc, "%s %s %s[%lld] while a bulk copy may be writing there: its mbarrier says when it has landed",
         here(), write ? "writes" : "reads", r.name, static_cast<long long>((at - r.base) / 4));
  }
}

void access(const void *address, int bytes, bool write, const void *pc) {
  if (!running) return;
  const char *at = static_cast<const char *>(address);
  if (copies) not_in_flight(at, bytes, write, pc);
  if (at >= arena && at < arena + (int64_t(kSlots) << kSlotShift)) {
    const Region &r = slots[(at - arena) >> kSlotShift];
    const int64_t byte = at - r.base;
    if (!r.base) stop(kCrash, 0, pc, "%s uses a pointer that leads nowhere", here());
    if (byte < 0 || byte + bytes > r.bytes) {
      const long long index = byte / r.item - (byte % r.item < 0);
      stop(kOutOfBounds, 0, pc, "%s %s %s[%lld], but %s has %lld elements", here(),
           write ? "writes" : "reads", r.name, index, r.name, static_cast<long long>(r.bytes / r.item));
    }
    if (byte % bytes && bytes <= 16)
      stop(kMisuse, 0, pc, "%s touches %d bytes of %s at byte %lld: the address must be a multiple of %d",
           here(), bytes, r.name, static_cast<long long>(byte), bytes);
    if (r.tracked) track(r, at, bytes, write, pc);
  } else if (at >= static_shared.base && at + bytes <= static_shared.base + static_shared.bytes) {
    static_shared.item = bytes;
    track(static_shared, at, bytes, write, pc);
  }
}

// ---- fibers ----------------------------------------------------------------------------------------------

void wait_as(State state, int line) {
  Fiber &me = fibers[current];
  me.state = state, me.line = line;
  running = false;
  swapcontext(&me.context, &scheduler);
}

void enter(int thread) {
  current = thread;
  const unsigned x = blockDim.x, y = blockDim.y;
  threadIdx = {thread % x, thread / x % y, thread / (x * y)};
  running = true;
  swapcontext(&scheduler, &fibers[thread].context);
  running = false;
}

void fiber_main() {
  kernel_start(kernel_arguments);
  wait_as(State::kReturned, 0);
}

void prepare(int thread) {
  Fiber &f = fibers[thread];
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stacks + int64_t(thread) * (kStack + kPage) + kPage;
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fiber_main, 0);
  f.state = State::kReady, f.asked = false;
}

// Whether the lanes that `thread` waits for have all come; then they take their step.
bool step_together(int thread) {
  const Fiber &f = fibers[thread];
  const int first = thread / 32 * 32;
  kda::Lane *lanes[32] = {};
  current = thread;
  if (!(f.mask >> (thread - first) & 1))
    stop(kBarrier, f.line, nullptr, "%s calls %s with a mask that does not name its own lane", here(), f.name);
  for (int lane = 0; lane < 32; ++lane) {
    if (!(f.mask >> lane & 1)) continue;
    Fiber &other = fibers[first + lane];
    if (first + lane >= threads)
      stop(kBarrier, f.line, nullptr, "%s names lane %d in the mask of %s: the block has no such thread",
           here(), lane, f.name);
    if (other.state == State::kReturned)
      stop(kBarrier, f.line, nullptr, "%s waits at %s for lane %d, which has returned", here(), f.name, lane);
    if (other.state != State::kInStep) return false;
    if (other.together != f.together || other.mask != f.mask) return false;
    lanes[lane] = &other.lane;
  }
  if (f.together) f.together(lanes);
  else ++warp_step[first / 32], meet(first, 32, f.mask);
  for (int lane = 0; lane < 32; ++lane)
    if (f.mask >> lane & 1) fibers[first + lane].state = State::kReady;
  return true;
}

bool mbarrier_passed(const uint64_t *barrier, uint32_t parity);
void land_copies();

void what_misses(char *to, int room, const uint64_t *barrier);

const char *what_for(const Fiber &f) {
  static char text[2][200];
  static int turn;
  char *to = text[turn ^= 1];
  if (f.state == State::kReturned) return "has returned";
  const int length = snprintf(
      to, 200, "waits at %s (line %d)",
      f.state == State::kAtBarrier ? "__syncthreads()" : f.state == State::kInStep ? f.name : "an mbarrier", f.line);
  if (f.state == State::kAtMbarrier) what_misses(to + length, 200 - length, f.barrier);
  return to;
}

[[noreturn]] void stuck() {
  int waiting = 0;
  while (fibers[waiting].state == State::kReturned) ++waiting;
  int other = waiting;  // one that waits elsewhere says more than one that has returned
  for (const bool returned : {true, false})
    for (int i = 0; i < threads; ++i)
      if ((fibers[i].state == State::kReturned) == returned &&
          (fibers[i].state != fibers[waiting].state || fibers[i].line != fibers[waiting].line))
        other = i;
  current = waiting;
  if (other == waiting)
    stop(kBarrier, fibers[waiting].line, nullptr, "%s %s, and nothing will ever end that", here(),
         what_for(fibers[waiting]));
  stop(kBarrier, fibers[waiting].line, nullptr, "%s %s, but thread %d %s", here(),
       what_for(fibers[waiting]), other, what_for(fibers[other]));
}

void release_barrier() {
  for (int i = 0; i < threads; ++i)
    if (fibers[i].state == State::kReturned || fibers[i].line != fibers[0].line) stuck();
  for (int i = 0; i < threads; ++i) fibers[i].state = State::kReady;
  ++block_step;
  meet(0, threads, ~0u);
}

void run_block() {
  for (int i = 0; i < threads; ++i) prepare(i);
  for (;;) {
    bool moved = false;
    for (int i = 0; i < threads; ++i)
      if (fibers[i].state == State::kReady) enter(i), moved = true;
    int returned = 0, at_barrier = 0;
    for (int i = 0; i < threads; ++i) {
      if (fibers[i].state == State::kInStep && step_together(i)) moved = true;
      if (fibers[i].state == State::kAtMbarrier && mbarrier_passed(fibers[i].barrier, fibers[i].parity))
        fibers[i].state = State::kReady, moved = true;
      returned += fibers[i].state == State::kReturned;
      at_barrier += fibers[i].state == State::kAtBarrier;
    }
    if (returned == threads) {
      current = 0;
      if (copies)
        stop(kBarrier, 0, nullptr, "block %d ends while a bulk copy is in flight: nobody waited for it", block_number);
      return;
    }
    if (!moved && copies) land_copies(), moved = true;
    if (at_barrier && returned + at_barrier == threads) release_barrier();
    else if (!moved) stuck();
  }
}

// ---- memory ----------------------------------------------------------------------------------------------

void *reserve(int64_t bytes, int protection) {
  void *p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

int64_t pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

bool open_region(int slot, int64_t bytes, int item, bool tracked, const char *name) {
  Region &r = slots[slot];
  r.base = arena + (int64_t(slot) << kSlotShift) + (int64_t(1) << (kSlotShift - 1));
  r.bytes = bytes, r.item = item, r.tracked = tracked, r.name = name;
  r.cells = tracked ? static_cast<Cell *>(malloc(bytes * sizeof(Cell) + 1)) : nullptr;
  if (tracked) memset(r.cells, 0xff, bytes * sizeof(Cell));  // thread -1: nobody
  return !bytes || mprotect(r.base, pages(bytes), PROT_READ | PROT_WRITE) == 0;
}

void close_regions() {
  for (Region &r : slots) {
    if (r.base && r.bytes) {
      madvise(r.base, pages(r.bytes), MADV_DONTNEED);
      mprotect(r.base, pages(r.bytes), PROT_NONE);
    }
    free(r.cells);
    r = {};
  }
  free(static_shared.cells);
  static_shared = {};
}

void fresh_shared(Region &r) {
  if (!r.bytes) return;
  memset(r.base, kPoison, r.bytes);
  memset(r.cells, 0xff, r.bytes * sizeof(Cell));
}

// ---- signals ---------------------------------------------------------------------------------------------

void on_signal(int number, siginfo_t *info, void *) {
  if (!running) _Exit(128 + number);
  if (number == SIGFPE) stop(kCrash, 0, nullptr, "%s divides an integer by zero", here());
  if (number == SIGSEGV || number == SIGBUS) {
    const char *at = static_cast<const char *>(info->si_addr);
    const char *stack = stacks + int64_t(current) * (kStack + kPage);
    if (at >= stack && at < stack + kPage)
      stop(kCrash, 0, nullptr, "%s needs more than %d KB of stack", here(), kStack >> 10);
    stop(kCrash, 0, nullptr, "%s uses an address that belongs to no array (%p)", here(), info->si_addr);
  }
  stop(kCrash, 0, nullptr, "%s was stopped by signal %d", here(), number);
}

void catch_signals() {
  stack_t stack = {};
  stack.ss_sp = signal_stack, stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < 5; ++i) sigaction(kSignals[i], &action, &old_actions[i]);
}

void release_signals() {
  for (int i = 0; i < 5; ++i) sigaction(kSignals[i], &old_actions[i], nullptr);
}

void run_grid() {
  const int64_t blocks = int64_t(gridDim.x) * gridDim.y * gridDim.z;
  for (int64_t b = 0; b < blocks; ++b) {
    const unsigned at = static_cast<unsigned>(b);
    blockIdx = {at % gridDim.x, at / gridDim.x % gridDim.y, at / (gridDim.x * gridDim.y)};
    block_number = static_cast<int>(b), block_step = copies = mbarrier_count = unfenced_barriers = 0;
    memset(warp_step, 0, sizeof warp_step);
    fresh_shared(static_shared);
    fresh_shared(slots[kSlots - 1]);
    run_block();
  }
}

}  // namespace

// ---- what the header declares ----------------------------------------------------------------------------

namespace kda {

void not_attempted() { stop(kNotAttempted, 0, nullptr, "not attempted"); }

void misuse(int line, const char *format, ...) {
  char text[300];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  stop(kMisuse, line, nullptr, "%s: %s", here(), text);
}

void print(const char *format, ...) {
  const size_t used = strlen(report->printed);
  va_list list;
  va_start(list, format);
  vsnprintf(report->printed + used, sizeof report->printed - used, format, list);
  va_end(list);
}

void sync_threads(int line) { wait_as(State::kAtBarrier, line); }

void collective(const char *name, int line, unsigned mask, const void *in, void *out, Together together) {
  Fiber &me = fibers[current];
  me.name = name, me.mask = mask, me.together = together, me.lane = {in, out, line};
  wait_as(State::kInStep, line);
}

void SyncWarp::operator()(unsigned mask) const {
  collective("__syncwarp", line, mask, nullptr, nullptr, nullptr);
}

void touch(const void *p, int bytes, bool write) {
  access(p, bytes, write, __builtin_return_address(0));
}

void need_shared(int line, const void *p, const char *what) {
  const char *at = static_cast<const char *>(p);
  const Region &dynamic = slots[kSlots - 1];
  const bool in_static = at >= static_shared.base && at < static_shared.base + static_shared.bytes;
  const bool in_dynamic = dynamic.base && at >= dynamic.base && at < dynamic.base + dynamic.bytes;
  if (!in_static && !in_dynamic) misuse(line, "%s must lie in shared memory", what);
}

void *dynamic_shared_bytes() {
  if (!slots[kSlots - 1].bytes) misuse(0, "the launch gives no dynamic shared memory");
  return slots[kSlots - 1].base;
}

// Atomic accesses race with nobody, so they are checked for their bounds alone.
template <class T>
static T atomic_add_any(T *p, T x, const void *pc) {
  const Touch nobody{-1, 0, 0};
  for (Region &r : slots)
    if (r.tracked && reinterpret_cast<char *>(p) >= r.base && reinterpret_cast<char *>(p) < r.base + r.bytes) {
      r.tracked = false;
      access(p, sizeof(T), true, pc);
      r.tracked = true;
      const T before = *p;
      *p = before + x;
      return before;
    }
  if (reinterpret_cast<char *>(p) >= static_shared.base &&
      reinterpret_cast<char *>(p) < static_shared.base + static_shared.bytes)
    for (size_t i = 0; i < sizeof(T); ++i)
      static_shared.cells[reinterpret_cast<char *>(p) - static_shared.base + i].write = nobody;
  else
    access(p, sizeof(T), true, pc);
  const T before = *p;
  *p = before + x;
  return before;
}
float atomic_add(float *p, float x) { return atomic_add_any(p, x, __builtin_return_address(0)); }
int atomic_add(int *p, int x) { return atomic_add_any(p, x, __builtin_return_address(0)); }
unsigned atomic_add(unsigned *p, unsigned x) { return atomic_add_any(p, x, __builtin_return_address(0)); }

static void ballot_together(Lane *lanes[32]) {
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i)
    if (lanes[i] && *static_cast<const bool *>(lanes[i]->in)) votes |= 1u << i;
  for (int i = 0; i < 32; ++i)
    if (lanes[i]) *static_cast<unsigned *>(lanes[i]->out) = votes;
}

unsigned ballot(int line, unsigned mask, bool vote) {
  unsigned votes = 0;
  collective("__ballot_sync", line, mask, &vote, &votes, ballot_together);
  return votes;
}

// mma.sync.aligned.m16n8k16.row.col (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with group = lane / 4
// and pair = 2 * (lane % 4), a register holds two neighbours along k:
//   a[r]: row group + 8 * (r % 2), columns pair + 8 * (r / 2) and one more
//   b[r]: rows pair + 8 * r and one more, column group
//   d[i]: row group + 8 * (i / 2), column pair + i % 2
struct Mma {
  const uint32_t *a, *b;
  float *d;
};

static float half_of(uint32_t pair, int i) {
  bf16 x;
  x.bits = static_cast<uint16_t>(pair >> 16 * i);
  return x;
}

static void mma_together(Lane *lanes[32]) {
  float A[16][16], B[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma &m = *static_cast<const Mma *>(lanes[lane]->in);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < 2; ++i) A[group + 8 * (r % 2)][pair + 8 * (r / 2) + i] = half_of(m.a[r], i);
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < 2; ++i) B[pair + 8 * r + i][group] = half_of(m.b[r], i);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const Mma &m = *static_cast<const Mma *>(lanes[lane]->in);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) m.d[i] += A[row][k] * B[k][column];
    }
  }
}

void mma_m16n8k16(int line, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Mma in{a, b, d};
  collective("mma_m16n8k16", line, 0xffffffffu, &in, nullptr, mma_together);
}

// ldmatrix.sync.aligned.m8n8: lane 8 i + j brings the address of row j of matrix i (16 bytes); lane l takes
// the elements of row l / 4, columns 2 * (l % 4) and one more, of each matrix, or with .trans of its transpose.
struct Ldmatrix {
  const char *row;
  uint32_t *r;
  int matrices;
  bool trans;
};

static void ldmatrix_together(Lane *lanes[32]) {
  uint16_t tile[4][8][8];
  const int matrices = static_cast<const Ldmatrix *>(lanes[0]->in)->matrices;
  for (int lane = 0; lane < 8 * matrices; ++lane)
    memcpy(tile[lane / 8][lane % 8], static_cast<const Ldmatrix *>(lanes[lane]->in)->row, 16);
  for (int lane = 0; lane < 32; ++lane) {
    const Ldmatrix &m = *static_cast<const Ldmatrix *>(lanes[lane]->in);
    for (int i = 0; i < matrices; ++i) {
      const int row = lane / 4, column = lane % 4 * 2;
      const auto &t = tile[i];
      m.r[i] = m.trans ? t[column][row] | uint32_t(t[column + 1][row]) << 16
                       : t[row][column] | uint32_t(t[row][column + 1]) << 16;
    }
  }
}

void ldmatrix(int line, uint32_t *r, int matrices, bool trans, const void *row) {
  const int lane = current % 32;
  if (lane < 8 * matrices) {  // the other lanes' addresses are not used
    need_shared(line, row, "the row of ldmatrix");
    if (reinterpret_cast<uintptr_t>(row) % 16) misuse(line, "a row of ldmatrix must start at a multiple of 16 bytes");
    access(row, 16, false, __builtin_return_address(0));
  }
  const Ldmatrix in{static_cast<const char *>(row), r, matrices, trans};
  collective(matrices == 4 ? "ldmatrix_x4" : "ldmatrix_x2", line, 0xffffffffu, &in, nullptr, ldmatrix_together);
}

}  // namespace kda

// ---- mbarriers and bulk copies -----------------------------------------------------------------------------

namespace {

// How an mbarrier's 64 bits are used here. Shared memory starts as ones, which is no barrier.
struct Mbarrier {
  uint32_t count : 12, pending : 12, phase : 8;  // the phase that is open, modulo 256
  int32_t bytes;  // expected and not yet there
};
static_assert(sizeof(Mbarrier) == 8, "as on the hardware");

Mbarrier &mbarrier_at(int line, const uint64_t *barrier, bool writes, const void *pc) {
  kda::need_shared(line, barrier, "an mbarrier");
  if (reinterpret_cast<uintptr_t>(barrier) % 8) kda::misuse(line, "an mbarrier must lie at a multiple of 8 bytes");
  access(barrier, 8, writes, pc);
  if (!writes && *barrier == ~uint64_t(0)) kda::misuse(line, "the mbarrier was never initialised");
  return *reinterpret_cast<Mbarrier *>(const_cast<uint64_t *>(barrier));
}

bool end_phase(Mbarrier &m) {
  if (m.pending || m.bytes) return false;
  m.phase += 1, m.pending = m.count;
  const int i = find_mbarrier(reinterpret_cast<const uint64_t *>(&m));
  if (i >= 0) join(clock_of(i, false), clock_of(i, true));
  return true;
}

// What the open phase still waits for.
void what_misses(char *to, int room, const uint64_t *barrier) {
  const Mbarrier &m = *reinterpret_cast<const Mbarrier *>(barrier);
  const int n = snprintf(to, room, " for the end of phase %u (parity %u), which misses %u of %u arrivals", m.phase,
                         m.phase & 1, m.pending, m.count);
  if (m.bytes > 0) snprintf(to + n, room - n, " and %d bytes", m.bytes);
  if (m.bytes < 0) snprintf(to + n, room - n, " and has %d bytes that nobody promised", -m.bytes);
}

bool mbarrier_passed(const uint64_t *barrier, uint32_t parity) {
  return reinterpret_cast<const Mbarrier *>(barrier)->phase % 2 != (parity & 1);
}

void land_copies() {
  for (int i = 0; i < copies; ++i) {
    memcpy(flying[i].to, flying[i].from, flying[i].bytes);
    Mbarrier &m = *reinterpret_cast<Mbarrier *>(flying[i].barrier);
    m.bytes -= flying[i].bytes;
    end_phase(m);
  }
  copies = 0;
}

}  // namespace

namespace kda {

void init_barrier(int line, uint64_t *barrier, uint32_t count) {
  Mbarrier &m = mbarrier_at(line, barrier, true, __builtin_return_address(0));
  if (count < 1 || count > 4095) misuse(line, "an mbarrier counts 1 to 4095 arrivals, not %u", count);
  m = {count, count, 0, 0};
  if (!mbarrier_count)
    for (int t = 0; t < threads; ++t) {
      memset(clock_of(t), 0, threads * sizeof(int));
      clock_of(t)[t] = 1;
    }
  int i = find_mbarrier(barrier);
  if (i < 0 && mbarrier_count == kMaxMbarriers) misuse(line, "more than %d mbarriers", kMaxMbarriers);
  if (i < 0) mbarriers[i = mbarrier_count++] = barrier;
  for (const bool open : {false, true}) memset(clock_of(i, open), 0, threads * sizeof(int));
  if (unfenced_barriers < kMaxUnfenced) unfenced[unfenced_barriers++] = {barrier, current};
}

// The barriers that this thread initialised become visible to bulk copies.
void fence_init() {
  int left = 0;
  for (int i = 0; i < unfenced_barriers; ++i)
    if (unfenced[i].thread != current) unfenced[left++] = unfenced[i];
  unfenced_barriers = left;
}

void arrive(int line, uint64_t *barrier, uint32_t bytes) {
  Mbarrier &m = mbarrier_at(line, barrier, false, __builtin_return_address(0));
  if (!m.pending) misuse(line, "more arrivals than the %u that this phase of the mbarrier waits for", m.count);
  m.bytes += static_cast<int32_t>(bytes), m.pending -= 1;
  tell(barrier);
  if (end_phase(m)) wait_as(State::kReady, line);  // whoever waited for it goes first: what is still to be done here is late
}

// The instruction gives up after a while. Here it does so at once, and the next time it waits for the end of
// the phase: a loop around it is right, one question is not.
bool wait(int line, uint64_t *barrier, uint32_t parity) {
  mbarrier_at(line, barrier, false, __builtin_return_address(0));
  Fiber &me = fibers[current];
  if (!mbarrier_passed(barrier, parity)) {
    if ((me.asked = !me.asked)) return false;
    me.barrier = barrier, me.parity = parity;
    wait_as(State::kAtMbarrier, line);
  }
  me.asked = false;
  if (const int i = find_mbarrier(barrier); i >= 0) join(clock_of(current), clock_of(i, false));
  return true;
}

// The bytes land when nobody can run on.
void copy_bulk(int line, void *to, const void *from, uint32_t bytes, uint64_t *barrier) {
  const void *pc = __builtin_return_address(0);
  need_shared(line, to, "the destination of a bulk copy");
  for (const void *p : {static_cast<const void *>(to), from, reinterpret_cast<const void *>(uintptr_t(bytes))})
    if (reinterpret_cast<uintptr_t>(p) % 16)
      misuse(line, "addresses and size of a bulk copy must be multiples of 16 bytes");
  mbarrier_at(line, barrier, false, pc);
  for (int i = 0; i < unfenced_barriers; ++i)
    if (unfenced[i].barrier == barrier)
      misuse(line, "the copy engine may not know this mbarrier yet: fence_mbarrier_init() is missing");
  for (uint32_t i = 0; i < bytes; i += 16) {
    access(static_cast<const char *>(from) + i, 16, false, pc);
    access(static_cast<char *>(to) + i, 16, true, pc);
  }
  if (copies == kMaxCopies) misuse(line, "more than %d bulk copies are in flight", kMaxCopies);
  flying[copies++] = {to, from, bytes, barrier};
  tell(barrier);
}

}  // namespace kda

// ---- the compiler's hooks ----------------------------------------------------------------------------------

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
#define HOOKS(size)                                                                                \
  void __tsan_read##size(void *p) { access(p, size, false, __builtin_return_address(0)); }         \
  void __tsan_write##size(void *p) { access(p, size, true, __builtin_return_address(0)); }         \
  void __tsan_unaligned_read##size(void *p) { access(p, size, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##size(void *p) { access(p, size, true, __builtin_return_address(0)); } \
  void __tsan_volatile_read##size(void *p) { access(p, size, false, __builtin_return_address(0)); } \
  void __tsan_volatile_write##size(void *p) { access(p, size, true, __builtin_return_address(0)); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void *p, long n) { access(p, static_cast<int>(n), false, __builtin_return_address(0)); }
void __tsan_write_range(void *p, long n) { access(p, static_cast<int>(n), true, __builtin_return_address(0)); }

struct Where {
  const char *file;
  uint32_t line, column;
};
struct Type {
  uint16_t kind, info;  // info: signed in bit 0, log2 of the bits above it
  char name[1];
};
struct IndexData {
  Where where;
  const Type *array, *index;
};
struct OverflowData {
  Where where;
  const Type *type;
};
struct PointerData {
  Where where;
  const Type *type;
  unsigned char log_alignment, kind;
};

static long long value_of(const Type *type, unsigned long x) {
  const int bits = 1 << (type->info >> 1);
  if (bits == 64 || !(type->info & 1)) return static_cast<long long>(x);
  return static_cast<long long>(x << (64 - bits)) >> (64 - bits);
}

void __ubsan_handle_out_of_bounds(IndexData *data, unsigned long index) {
  if (running)
    stop(kOutOfBounds, data->where.line, nullptr, "%s uses index %lld of an array that is %s", here(),
         value_of(data->index, index), data->array->name);
}
void __ubsan_handle_type_mismatch_v1(PointerData *data, unsigned long pointer) {
  if (!running) return;
  if (!pointer) stop(kCrash, data->where.line, nullptr, "%s uses a null pointer", here());
  const int alignment = 1 << data->log_alignment;
  if (pointer % alignment)
    stop(kMisuse, data->where.line, nullptr, "%s uses an address that is no multiple of %d as one of %s", here(),
         alignment, data->type->name);
}
static void overflow(const OverflowData *data, unsigned long a, char sign, unsigned long b) {
  if (running)
    stop(kOverflow, data->where.line, nullptr, "%s computes %lld %c %lld, which does not fit %s", here(),
         value_of(data->type, a), sign, value_of(data->type, b), data->type->name);
}
void __ubsan_handle_add_overflow(OverflowData *data, unsigned long a, unsigned long b) { overflow(data, a, '+', b); }
void __ubsan_handle_sub_overflow(OverflowData *data, unsigned long a, unsigned long b) { overflow(data, a, '-', b); }
void __ubsan_handle_mul_overflow(OverflowData *data, unsigned long a, unsigned long b) { overflow(data, a, '*', b); }
void __ubsan_handle_divrem_overflow(OverflowData *data, unsigned long a, unsigned long b) { overflow(data, a, '/', b); }
void __ubsan_handle_negate_overflow(OverflowData *data, unsigned long a) { overflow(data, 0, '-', a); }

// ---- the one entry -----------------------------------------------------------------------------------------

// Runs a kernel on copies of its arrays; those that it may write are copied back.
// shape: grid x y z, block x y z, bytes of dynamic shared memory.
__attribute__((visibility("default"))) void kda_launch(const char *name, const int64_t *shape, int count,
                                                       Argument *arguments, Report *out) {
  report = out;
  memset(out, 0, sizeof *out);
  out->pc = out->shared = -1;
  const kda::Kernel *kernel = kda_kernels;
  while (kernel->name && strcmp(kernel->name, name)) ++kernel;
  threads = static_cast<int>(shape[3] * shape[4] * shape[5]);
  auto unusable = [&](const char *why) {
    out->code = kMisuse;
    snprintf(out->text, sizeof out->text, "%s: %s", name, why);
  };
  if (!kernel->name) return unusable("there is no such kernel");
  if (count > kMaxArguments || threads < 1 || threads > kMaxThreads) return unusable("it cannot be launched so");
  if (!arena) arena = static_cast<char *>(reserve(int64_t(kSlots) << kSlotShift, PROT_NONE));
  // A guard page makes two mappings of one; a process may have some 65,000, and loads many libraries. So for this launch only.
  const int64_t stack_bytes = int64_t(threads) * (kStack + kPage);
  stacks = static_cast<char *>(reserve(stack_bytes, PROT_READ | PROT_WRITE));
  for (int i = 0; stacks && i < threads; ++i)
    mprotect(stacks + int64_t(i) * (kStack + kPage), kPage, PROT_NONE);
  auto release = [&] {
    close_regions();
    if (stacks) munmap(stacks, stack_bytes);
    stacks = nullptr;
  };
  if (!clocks) {
    clocks = static_cast<int *>(reserve(4l * kMaxThreads * kMaxThreads, PROT_READ | PROT_WRITE));
    mbarrier_clocks = static_cast<int *>(reserve(8l * kMaxMbarriers * kMaxThreads, PROT_READ | PROT_WRITE));
  }
  if (!arena || !stacks || !clocks || !mbarrier_clocks) {
    release();
    return unusable("this machine does not give enough address space");
  }

  void *values[kMaxArguments], *pointers[kMaxArguments];
  bool ready = open_region(kSlots - 1, shape[6], 4, true, "the dynamic shared memory");
  for (int i = 0; i < count; ++i) {
    Argument &a = arguments[i];
    values[i] = a.data;
    if (a.bytes < 0) continue;  // a number
    ready = ready && open_region(i, a.bytes, a.item, a.written, a.name);
    if (ready && a.bytes) memcpy(slots[i].base, a.data, a.bytes);
    pointers[i] = slots[i].base;
    values[i] = &pointers[i];
  }
  if (__start_kda_shared) {
    static_shared.base = __start_kda_shared, static_shared.bytes = __stop_kda_shared - __start_kda_shared;
    static_shared.item = 4, static_shared.name = "shared memory";
    static_shared.cells = static_cast<Cell *>(malloc(static_shared.bytes * sizeof(Cell) + 1));
  }
  if (!ready) {
    release();
    return unusable("this machine does not give enough memory");
  }
  gridDim = {unsigned(shape[0]), unsigned(shape[1]), unsigned(shape[2])};
  blockDim = {unsigned(shape[3]), unsigned(shape[4]), unsigned(shape[5])};
  kernel_start = kernel->start, kernel_arguments = values;

  catch_signals();
  static volatile bool begun;
  begun = false;
  getcontext(&end);  // stop() comes back to here
  if (!begun) {
    begun = true;
    run_grid();
  }
  running = false;
  release_signals();
  if (out->code == kDone)
    for (int i = 0; i < count; ++i)
      if (arguments[i].bytes > 0) memcpy(arguments[i].data, slots[i].base, arguments[i].bytes);
  release();
}

}  // extern "C"

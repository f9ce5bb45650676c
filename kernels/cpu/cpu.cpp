/* Rung cpu: KDA on the processor that runs Python.
 *
 * Idea: the recurrence in chunks of 16 tokens, so that nearly all arithmetic is three small matrix products
 *   with the state per chunk; the state of one head never leaves the core's own cache.
 * What changed against the PyTorch chunks (kda_lab/chunked.py): decays inside a chunk are running products,
 *   one exponential per token and channel instead of one per pair; the corrections U come from substitution in
 *   registers; a panel of 2 vectors of state columns stays in L1 while it is read for K and Q and rewritten;
 *   a thread takes up to four neighbouring heads through the tokens together, since their rows share memory pages.
 * Predicted: 98,304 of about 108,000 FLOP per token and head run at the rate of a good matrix product, the
 *   preparation costs a sixth on top: 1.2 times the arithmetic floor at K = V = 128.
 * Ledger rows: rung `cpu`, kind `cpu` (kda-lab bench cpu).
 *
 * Served: fp32 and bf16 inputs, fp32 arithmetic and states, every gate of the contract, any K, V, T and HV/H,
 * packed sequences. Threads share (sequence, head) pairs, split over V when there are too few of them.
 * The environment variable KDA_LAB_CPU_ISA (baseline, avx2, avx512) overrides the choice of instructions.
 */
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "kda_lab.h"

namespace {

constexpr int CHUNK = 16;
constexpr int WIDEST = 16;           /* floats in the widest vector served */
constexpr double THREAD_FLOPS = 8e6; /* below this, starting a thread costs more than it saves */
constexpr int64_t CACHE = 256 << 10; /* bytes of states that a core keeps beside everything else */
constexpr double PREPARATION = 1.2;  /* of a chunk, in units of the work on 16 columns of the state */

inline float from_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline uint16_t to_bf16(float x) { /* to nearest, ties to even; NaN stays NaN */
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* What one thread works in: rows of Kp = K or Vp = V floats, rounded up to whole vectors. */
struct Scratch {
  int Kp, Vp;
  float *S;                       /* [heads][panels][Kp][PW] the states */
  float *k, *q, *a;               /* [16][Kp] normalised keys, scaled queries, decays */
  float *k_in, *q_in, *k_out;     /* [16][Kp] */
  float *v, *o;                   /* [16][Vp] */
  float *U;                       /* [16][PW] corrections of one panel */
  float *carried;                 /* [4][Kp] */
  float *keep, *change, *bias;    /* [Kp] */
  float *L, *M;                   /* [16][16] */
  float *beta;                    /* [16] */

  static int64_t floats(int heads, int Kp, int Vp) {
    return static_cast<int64_t>(heads) * Kp * Vp + (6 * CHUNK + 4 + 3) * static_cast<int64_t>(Kp) +
           2 * CHUNK * static_cast<int64_t>(Vp) + CHUNK * 2 * WIDEST + 2 * CHUNK * CHUNK + CHUNK;
  }

  Scratch(float *at, int heads, int Kp, int Vp) : Kp(Kp), Vp(Vp) {
    auto take = [&](int64_t n) { return at += n, at - n; };
    S = take(static_cast<int64_t>(heads) * Kp * Vp);
    for (float **p : {&k, &q, &a, &k_in, &q_in, &k_out}) *p = take(CHUNK * Kp);
    v = take(CHUNK * Vp), o = take(CHUNK * Vp);
    U = take(CHUNK * 2 * WIDEST);
    carried = take(4 * Kp);
    keep = take(Kp), change = take(Kp), bias = take(Kp);
    L = take(CHUNK * CHUNK), M = take(CHUNK * CHUNK);
    beta = take(CHUNK);
  }
};

struct Task {
  int64_t sequence, batch, begin, end; /* tokens begin .. end of row `batch` */
  int64_t head;
  int heads;       /* value heads head .. head + heads */
  int first, last; /* panels */
};

#define KDA_INLINE_MEMBER inline __attribute__((always_inline))

#define KDA_ISA baseline /* SSE2, NEON: what every machine of this kind has */
#define KDA_WIDTH 4
#if defined(__aarch64__)
#define KDA_ROWS 8
#else
#define KDA_ROWS 4
#endif
#include "chunk.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define KDA_ISA avx2
#define KDA_WIDTH 8
#define KDA_ROWS 6
#include "chunk.h"
#if !defined(KDA_EMULATE_AVX512) /* tests define it: the 16-lane code in AVX2 halves, for machines without AVX-512 */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#endif
#endif
#define KDA_ISA avx512
#define KDA_WIDTH 16
#define KDA_ROWS 8
#include "chunk.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#if !defined(KDA_EMULATE_AVX512)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#endif

struct Isa {
  const char *name;
  int panel; /* state columns that it works on at a time */
  bool runs_here;
  void (*task)(const kda_args &, const Scratch &, const Task &);
};

/* The instruction sets of this machine, best first. */
const std::vector<Isa> &instruction_sets() {
#if defined(__x86_64__)
  const bool avx2_here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(KDA_EMULATE_AVX512)
  const bool avx512_here = avx2_here;
#else
  const bool avx512_here = avx2_here && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
  static const std::vector<Isa> all = {
      {"avx512", avx512::PW, avx512_here, avx512::task},
      {"avx2", avx2::PW, avx2_here, avx2::task},
      {"baseline", baseline::PW, true, baseline::task}};
#else
  static const std::vector<Isa> all = {{"baseline", baseline::PW, true, baseline::task}};
#endif
  return all;
}

/* The one to use: the best, or what KDA_LAB_CPU_ISA names; null if that cannot run here. */
const Isa *instruction_set() {
  const char *wanted = std::getenv("KDA_LAB_CPU_ISA");
  for (const Isa &isa : instruction_sets())
    if (isa.runs_here && (!wanted || !*wanted || !std::strcmp(wanted, isa.name))) return &isa;
  return nullptr;
}

/* Flushes numbers below 1e-38 to zero while it lives: they are far below fp32 noise and slow on some processors. */
class FlushTiny {
#if defined(__x86_64__)
  unsigned saved = _mm_getcsr();

 public:
  FlushTiny() { _mm_setcsr(saved | 0x8040); }
  ~FlushTiny() { _mm_setcsr(saved); }
#endif
};

thread_local std::string last_error;

kda_status fail(kda_status status, const std::string &text) {
  last_error = text;
  return status;
}

int padded_k(const kda_args &a) { return (a.dim_k + WIDEST - 1) / WIDEST * WIDEST; }
int padded_v(const kda_args &a) { return (a.dim_v + 2 * WIDEST - 1) / (2 * WIDEST) * (2 * WIDEST); }


int threads_wanted(const kda_args &a) {
  const double flops = 6.0 * a.batch * a.tokens * a.heads_v * a.dim_k * a.dim_v;
  const int cores = a.threads > 0 ? a.threads : std::max(1u, std::thread::hardware_concurrency());
  return static_cast<int>(std::min<double>(cores, 1 + flops / THREAD_FLOPS));
}

/* How many neighbouring heads a thread takes through the tokens together: as many as its cache holds states of, while
 * the shares still divide evenly over the threads. */
int heads_together(const kda_args &a) {
  const int64_t state = static_cast<int64_t>(padded_k(a)) * padded_v(a) * 4, threads = threads_wanted(a);
  int heads = 1;
  for (int more = 2; more * state <= CACHE && a.heads_v % more == 0; more *= 2)
    if (a.sequences * a.heads_v / more % threads == 0) heads = more;
  return heads;
}

int64_t scratch_bytes(const kda_args &a) { /* per thread, whole 256-byte units */
  return (Scratch::floats(heads_together(a), padded_k(a), padded_v(a)) * 4 + 255) / 256 * 256;
}

/* Into how many parts the columns of V are best divided: more parts balance better, each prepares its chunks anew. */
int parts_of_v(int64_t heads, int panels, int panel, int threads) {
  int best = 1;
  double best_time = 0;
  for (int parts = 1; parts <= panels; ++parts) {
    const double rounds = static_cast<double>((heads * parts + threads - 1) / threads);
    const double time = rounds * (PREPARATION + (panels + parts - 1) / parts * (panel / 16.0));
    if (parts == 1 || time < 0.98 * best_time) best = parts, best_time = time;
  }
  return best;
}

/* Token range of sequence n, inside [0, T] whatever cu_seqlens holds; `floor` is where the one before ended. */
void span(const kda_args &a, int64_t n, int64_t floor, int64_t &begin, int64_t &end) {
  if (!a.cu_seqlens_bits) {
    begin = 0, end = a.tokens;
    return;
  }
  auto offset = [&](int64_t i) -> int64_t {
    return a.cu_seqlens_bits == 32 ? static_cast<const int32_t *>(a.cu_seqlens)[i]
                                   : static_cast<const int64_t *>(a.cu_seqlens)[i];
  };
  begin = std::min(std::max(offset(n), floor), a.tokens);
  end = std::min(std::max(offset(n + 1), begin), a.tokens);
}

kda_status forward(const kda_args &a) {
  const Isa *isa = instruction_set();
  if (!isa) return fail(KDA_UNSUPPORTED, "this processor does not have the instructions that KDA_LAB_CPU_ISA names");
  const int threads = threads_wanted(a);
  if (a.workspace_bytes < scratch_bytes(a) * threads || !a.workspace ||
      reinterpret_cast<uintptr_t>(a.workspace) % 256)
    return fail(KDA_WORKSPACE, "it needs " + std::to_string(scratch_bytes(a) * threads) + " bytes, 256-byte aligned");

  const int panels = (a.dim_v + isa->panel - 1) / isa->panel;
  const int heads = heads_together(a);
  const int parts = heads > 1 ? 1 : parts_of_v(a.sequences * a.heads_v, panels, isa->panel, threads);
  std::vector<Task> tasks;
  tasks.reserve(a.sequences * a.heads_v / heads * parts);
  int64_t done = 0;
  for (int64_t n = 0; n < a.sequences; ++n) {
    int64_t begin, end;
    span(a, n, done, begin, end);
    if (a.cu_seqlens_bits) done = end;
    for (int64_t hv = 0; hv < a.heads_v; hv += heads)
      for (int p = 0; p < parts; ++p)
        tasks.push_back(
            {n, a.cu_seqlens_bits ? 0 : n, begin, end, hv, heads, panels * p / parts, panels * (p + 1) / parts});
  }
  if (a.cu_seqlens_bits) /* long sequences first, so that the last to finish is a short one */
    std::stable_sort(tasks.begin(), tasks.end(),
                     [](const Task &x, const Task &y) { return x.end - x.begin > y.end - y.begin; });

  std::atomic<size_t> next{0};
  auto work = [&](int thread) {
    const FlushTiny flush;
    const Scratch scratch(reinterpret_cast<float *>(static_cast<char *>(a.workspace) + scratch_bytes(a) * thread),
                          heads, padded_k(a), padded_v(a));
    for (size_t i; (i = next.fetch_add(1)) < tasks.size();) isa->task(a, scratch, tasks[i]);
  };
  std::vector<std::thread> others;
  others.reserve(threads);
  for (int i = 1; i < threads; ++i) {
    try {
      others.emplace_back(work, i);
    } catch (const std::system_error &) {
      break; /* the machine gives no more threads: the ones there are do all the work */
    }
  }
  work(0);
  for (std::thread &thread : others) thread.join();

  if (a.cu_seqlens_bits) /* tokens past the last sequence */
    for (int64_t t = done; t < a.tokens; ++t)
      for (int64_t hv = 0; hv < a.heads_v; ++hv) {
        const int64_t at = t * a.o.stride_token + hv * a.o.stride_head;
        const int bytes = a.o.dtype == KDA_F32 ? 4 : 2;
        std::memset(static_cast<char *>(a.o.data) + at * bytes, 0, static_cast<size_t>(a.dim_v) * bytes);
      }
  return KDA_OK;
}

const char *contradiction(const kda_args &a) {
  if (a.abi_version != KDA_ABI_VERSION || a.struct_bytes != sizeof(kda_args)) return "kda_args of another version";
  if (a.batch < 0 || a.tokens < 0 || a.sequences < 0) return "a negative size";
  if (a.heads_qk < 1 || a.heads_v < 1 || a.heads_v % a.heads_qk) return "heads_v must be a multiple of heads_qk";
  if (a.dim_k < 1 || a.dim_v < 1) return "dim_k and dim_v must be positive";
  if (a.cu_seqlens_bits != 0 && a.cu_seqlens_bits != 32 && a.cu_seqlens_bits != 64) return "cu_seqlens_bits";
  if (a.cu_seqlens_bits ? a.batch != 1 || !a.cu_seqlens : a.sequences != a.batch) return "sequences and batch disagree";
  if (a.gate < KDA_GATE_LOG || a.gate > KDA_GATE_SIGMOID) return "gate is no kda_gate";
  if (a.beta_kind < KDA_BETA_PLAIN || a.beta_kind > KDA_BETA_2SIGMOID) return "beta_kind is no kda_beta";
  if (a.gate == KDA_GATE_SIGMOID && !(a.lower_bound < 0)) return "lower_bound must be negative";
  for (const kda_tensor *x : {&a.q, &a.k, &a.v, &a.o, &a.g, &a.beta}) {
    if (x->dtype != KDA_F32 && x->dtype != KDA_BF16) return "a tensor's dtype is no kda_dtype";
    if (!x->data && a.batch > 0 && a.tokens > 0) return "a tensor is NULL";
  }
  return nullptr;
}

}  // namespace

extern "C" {

const char *kda_cpu_declines(const kda_args *a) {
  if ((a->initial_state || a->final_state) && a->state_dtype != KDA_F32) return "it keeps states in float32";
  if (a->state_indices) return "it does not serve state_indices";
  return nullptr;
}

int64_t kda_cpu_workspace_bytes(const kda_args *a) { return scratch_bytes(*a) * threads_wanted(*a); }

kda_status kda_cpu_forward(const kda_args *a) {
  if (!a) return fail(KDA_INVALID, "args is NULL");
  if (const char *what = contradiction(*a)) return fail(KDA_INVALID, what);
  if (const char *why = kda_cpu_declines(a)) return fail(KDA_UNSUPPORTED, why);
  try {
    return forward(*a);
  } catch (const std::exception &e) {
    return fail(KDA_INVALID, std::string("the host ran out of resources: ") + e.what());
  }
}

const char *kda_cpu_error(void) { return last_error.c_str(); }

}  // extern "C"

// decode: one token (or a few) for every sequence of a batch; the state streams through registers.
//
// Idea       A token costs 4 fp32 operations for every state element that is read and written back, so
//            this is a copy of the state with a little arithmetic on the way. Four warps start all their
//            16-byte state loads before anything else; a fifth warp meanwhile computes gate, norm and
//            beta; then two dot products, the update, and the stores.
// Changed    from v1: no chunks, no staging; a block for each slab of columns of a head, many small blocks
//            an SM. The two roles never share a register. On Hopper, many heads with fp32 states in [V,K] wait in
//            shared memory instead (bulk.cuh). Caches of slots: sequence n keeps its state in slot state_indices[n].
// Predicted  Per SM at least 16 KB of loads in flight saturate memory (3 TB/s * 0.7 us / 132 SMs); here a
//            block holds 16 KB and four to six fit an SM. 90 % of copy bandwidth once B * H >= 1024; B = 1,
//            H = 32 is one 16 KB block for each SM: launch plus two memory latencies, 4 to 5 us.
// Ledger     rung decode, direction decode: 1-H32, 8-H32, 32-H32, 256-H32, 128-H96 (lost: NOTES.md).
//
// Serves     sm_80 and up; fp32 or bf16 tensors and states; every gate and beta kind; K 64, 128 or 256;
//            both state layouts; tokens <= 8 a sequence, or any with cu_seqlens (packed decode).
// Slots      state_indices[n] outside [0, state_slots) skips sequence n: no state is read or written and
//            its o is 0. Two sequences with one slot race: whose state remains is undefined, element by
//            element in 16-byte pieces; o of both is computed from what each happened to read.

#include <atomic>

#include "bulk.cuh"
#include "feed.cuh"

namespace {

using namespace kda::decode;

constexpr int kMaxTokens = 8;     // without cu_seqlens: a longer sequence is v1's

// ---- [V,K]: a row of the buffer is a column of S, its channels contiguous. LANES lanes share a row.
template <typename T, int K_>
struct VFirst {
  static constexpr int K = K_;
  static constexpr int N = Vec<T>::N;
  static constexpr int kThreads = 128;
  static constexpr int LANES = K / N < 32 ? K / N : 32;        // 32 lanes * 16 bytes = 512 bytes
  static constexpr int PIECES = K / N / LANES;                 // 16-byte pieces of a row for one lane
  static constexpr int kStateFloats = 32;                      // of a thread: 8 fp32 loads in flight
  static constexpr int kBlocksPerSM = K > 128 ? 4 : 5;         // 80 KB of fp32 loads in flight an SM
  static constexpr int ROWS = kStateFloats / (PIECES * N);     // rows of a lane
  static constexpr int kWarpRows = 32 / LANES * ROWS;
  static constexpr int kBlockRows = kThreads / 32 * kWarpRows; // columns of V for one block
  static_assert(2 * ROWS <= LANES, "the reduction leaves at most one sum in each lane");
};

template <typename T, class S>
__global__ void __launch_bounds__(S::kThreads + kFeeder, S::kBlocksPerSM)
    decode_v_first(const __grid_constant__ kda_args a, int slabs) {
  constexpr int K = S::K, N = S::N, LANES = S::LANES, ROWS = S::ROWS, PIECES = S::PIECES;
  __shared__ Feed<K, S::kBlockRows> feed;
  const Place p = place_of(a, slabs);
  const int first = p.slab * S::kBlockRows;
  zero_o(a, p, p.skipped ? p.span.begin : p.span.end, p.span.tail, first, S::kBlockRows);
  if (p.skipped) return;

  if (threadIdx.x >= S::kThreads) return feed_tokens<1, S::kThreads + kFeeder>(a, p, feed);

  const int lane = threadIdx.x % 32, in_row = lane % LANES;
  // Row `r` of this lane is column first_row + r * kNextRow of V
  const int first_row = first + threadIdx.x / 32 * S::kWarpRows + lane / LANES;
  constexpr int kNextRow = 32 / LANES;
  const int64_t base = (p.slot * a.heads_v + p.hv) * int64_t(K) * a.dim_v + in_row * N;
  typename Vec<T>::Raw raw[ROWS][PIECES] = {};
  if (a.initial_state)
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int j = 0; j < PIECES; ++j)
        if (first_row + r * kNextRow < a.dim_v)
          raw[r][j] = load_16<T>(a.initial_state,
                                 base + int64_t(first_row + r * kNextRow) * K + j * LANES * N);

  float s[ROWS][PIECES * N];
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int j = 0; j < PIECES; ++j) Vec<T>::unpack(raw[r][j], &s[r][j * N]);

  // After the reduction a lane holds S^T k (readers) or S^T q (writers, LANES / 2 further) of row `mine`
  constexpr int kCopies = LANES / (2 * ROWS);
  const int sum = in_row / kCopies, mine = sum % ROWS;
  const int my_x = first_row + mine * kNextRow;
  const bool writes = sum >= ROWS && in_row % kCopies == 0 && my_x < a.dim_v;

#pragma unroll 1
  for (int64_t t = p.span.begin; t < p.span.end; ++t) {
    const int now = (t - p.span.begin) % 2;
    meet<S::kThreads + kFeeder>();  // token t is ready
    float sums[2 * ROWS] = {};
#pragma unroll
    for (int j = 0; j < PIECES; ++j)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int c = (j * LANES + in_row) * N + i;
        const float d = feed.token[now].d[c], k = feed.token[now].k[c], q = feed.token[now].q[c];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          float &x = s[r][j * N + i];
          x *= d;                                       // S <- Diag(exp(g)) S
          sums[r] = fmaf(x, k, sums[r]);                // S^T k
          sums[ROWS + r] = fmaf(x, q, sums[ROWS + r]);  // S^T q, before the write
        }
      }
    kda::reduce_scatter<2 * ROWS, LANES>(sums, lane);
    // u = beta (v - S^T k), in the readers; every lane then fetches its rows' u
    const float u_mine = feed.beta[now] * (feed.v[now][my_x - first] - sums[0]);
    float u[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      u[r] = __shfl_sync(kda::kWarp, u_mine, lane / LANES * LANES + r * kCopies);
    const float u_read = __shfl_sync(kda::kWarp, u_mine, lane / LANES * LANES + mine * kCopies);
#pragma unroll
    for (int j = 0; j < PIECES; ++j)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float k = feed.token[now].k[(j * LANES + in_row) * N + i];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
          s[r][j * N + i] = fmaf(k, u[r], s[r][j * N + i]);  // S <- S + k u^T
      }
    if (writes)
      kda::store(a.o, kda::row(a.o, p.span.b, t, p.hv) + my_x,
                 fmaf(u_read, feed.qk[now], sums[0]));
  }

  if (!a.final_state) return;
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int x = first_row + r * kNextRow;
#pragma unroll
    for (int j = 0; j < PIECES; ++j)
      if (x < a.dim_v)
        store_16<T>(a.final_state, base + int64_t(x) * K + j * LANES * N, &s[r][j * N]);
  }
}

// ---- [K,V]: a row of the buffer is one channel; a thread owns N columns of ROWS channels, and the sums
// over channels cross warps through shared memory.
template <typename T, int K_>
struct KFirst {
  static constexpr int K = K_;
  static constexpr int N = Vec<T>::N;
  static constexpr int LANES = N * K > 1024 ? 4 : 8;        // of a row: 128 bytes, or 256 threads at most
  static constexpr int kBlockCols = LANES * N;
  static constexpr int kStateFloats = 64;                   // of a thread: fewer warps to sum across
  static constexpr int ROWS = kStateFloats / N;             // channels of a thread
  static constexpr int kThreads = LANES * K / ROWS;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBlocksPerSM = kThreads <= 128 ? 2 : 1;
  static constexpr int kStride = kThreads / LANES;          // from a thread's channel to its next
  static_assert(kThreads % 32 == 0 && kThreads <= 512,
                "whole warps, and few enough that two blocks fit an SM's registers");
};

template <typename T, class S>
__global__ void __launch_bounds__(S::kThreads + kFeeder, S::kBlocksPerSM)
    decode_k_first(const __grid_constant__ kda_args a, int slabs) {
  constexpr int K = S::K, N = S::N, LANES = S::LANES, ROWS = S::ROWS;
  __shared__ Feed<K, S::kBlockCols> feed;
  __shared__ float partial[S::kWarps][2][S::kBlockCols];  // [warp][k or q][column]
  const Place p = place_of(a, slabs);
  const int first = p.slab * S::kBlockCols;
  zero_o(a, p, p.skipped ? p.span.begin : p.span.end, p.span.tail, first, S::kBlockCols);
  if (p.skipped) return;

  if (threadIdx.x >= S::kThreads) return feed_tokens<2, S::kThreads + kFeeder>(a, p, feed);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int in_block = lane % LANES * N, x0 = first + in_block;  // this thread's N columns
  const int c0 = threadIdx.x / LANES;                            // channel r is c0 + r * kStride
  const bool inside = x0 < a.dim_v;                              // V is a multiple of N
  const int64_t base = (p.slot * a.heads_v + p.hv) * int64_t(K) * a.dim_v + x0;
  typename Vec<T>::Raw raw[ROWS] = {};
  if (a.initial_state && inside)
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      raw[r] = load_16<T>(a.initial_state, base + int64_t(c0 + r * S::kStride) * a.dim_v);

  float s[ROWS][N];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) Vec<T>::unpack(raw[r], s[r]);

#pragma unroll 1
  for (int64_t t = p.span.begin; t < p.span.end; ++t) {
    const int now = (t - p.span.begin) % 2;
    meet<S::kThreads + kFeeder>();  // token t is ready
    float sums[2 * N] = {};
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int c = c0 + r * S::kStride;
      const float d = feed.token[now].d[c], k = feed.token[now].k[c], q = feed.token[now].q[c];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        s[r][i] *= d;                               // S <- Diag(exp(g)) S
        sums[i] = fmaf(s[r][i], k, sums[i]);        // S^T k
        sums[N + i] = fmaf(s[r][i], q, sums[N + i]);  // S^T q, before the write
      }
    }
    constexpr int kGroups = 32 / LANES;  // rows that a warp holds at once
    kda::reduce_scatter<2 * N, kGroups, LANES>(sums, lane);
    const int from = kda::first_of<2 * N, kGroups, LANES>(lane);
#pragma unroll
    for (int i = 0; i < 2 * N / kGroups; ++i)
      partial[warp][(from + i) / N][in_block + (from + i) % N] = sums[i];
    meet<S::kThreads + kFeeder>();

    float u[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float read = 0.0f;
#pragma unroll
      for (int w = 0; w < S::kWarps; ++w) read += partial[w][0][in_block + i];
      u[i] = feed.beta[now] * (feed.v[now][in_block + i] - read);  // u = beta (v - S^T k)
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float k = feed.token[now].k[c0 + r * S::kStride];
#pragma unroll
      for (int i = 0; i < N; ++i) s[r][i] = fmaf(k, u[i], s[r][i]);  // S <- S + k u^T
    }
    if (threadIdx.x < LANES && inside) {
      const int64_t o = kda::row(a.o, p.span.b, t, p.hv) + x0;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float read = 0.0f;
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w) read += partial[w][1][in_block + i];
        kda::store(a.o, o + i, fmaf(u[i], feed.qk[now], read));
      }
    }
  }

  if (!a.final_state || !inside) return;
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
    store_16<T>(a.final_state, base + int64_t(c0 + r * S::kStride) * a.dim_v, s[r]);
}

// Multiprocessors of the current device if it is Hopper or later, else 0. Asked once for each device.
int hopper_sms() {
  static std::atomic<int> known[64];  // 1 + the answer
  int device = 0, major = 0, sms = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= 64) return 0;
  if (const int answer = known[device]) return answer - 1;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  known[device] = 1 + (major >= 9 ? sms : 0);
  return known[device] - 1;
}

// More slabs than decode_v_first holds at once. Fewer all start together, and registers are nearer than shared memory.
template <class S>
bool bulk_pays(int64_t blocks) {
  const int sms = hopper_sms();
  return sms > 0 && blocks > int64_t(S::kBlocksPerSM) * sms;
}

template <typename T, int K>
kda_status run(const kda_args *a) {
  if (a->state_v_first) {
    using S = VFirst<T, K>;
    const int slabs = (a->dim_v + S::kBlockRows - 1) / S::kBlockRows;
    const int64_t blocks = a->sequences * a->heads_v * slabs;
    if constexpr (sizeof(T) == 4) {
      using B = Bulk<K>;
      static_assert(B::kBlockRows == S::kBlockRows && B::kThreads == S::kThreads, "the same blocks, held differently");
      if (bulk_pays<S>(blocks))
        return kda::launch(decode_bulk<B>, blocks, B::kThreads + kFeeder, sizeof(BulkShared<B>), a->stream, "decode", *a,
                           slabs);
    }
    return kda::launch(decode_v_first<T, S>, blocks, S::kThreads + kFeeder, 0, a->stream, "decode", *a, slabs);
  }
  using S = KFirst<T, K>;
  const int slabs = (a->dim_v + S::kBlockCols - 1) / S::kBlockCols;
  return kda::launch(decode_k_first<T, S>, a->sequences * a->heads_v * slabs, S::kThreads + kFeeder, 0,
                     a->stream, "decode", *a, slabs);
}

template <int K>
kda_status run_dtype(const kda_args *a) {
  return a->state_dtype == KDA_BF16 ? run<uint16_t, K>(a) : run<float, K>(a);
}

}  // namespace

extern "C" {

const char *kda_decode_declines(const kda_args *a) {
  if (const char *why = kda::invalid(a)) return why;
  if (a->dim_k != 64 && a->dim_k != 128 && a->dim_k != 256) return "decode serves K = 64, 128 and 256";
  if (!a->cu_seqlens_bits && a->tokens > kMaxTokens) return "decode serves up to 8 tokens a sequence";
  if (!a->state_v_first && a->dim_v * kda::dtype_bytes(a->state_dtype) % 16)
    return "decode needs state rows of a multiple of 16 bytes: V % 4 (fp32 state) or V % 8 (bf16)";
  if ((reinterpret_cast<uintptr_t>(a->initial_state) | reinterpret_cast<uintptr_t>(a->final_state)) % 16)
    return "decode needs 16-byte aligned states";
  return nullptr;
}

int64_t kda_decode_workspace_bytes(const kda_args *) { return 0; }

kda_status kda_decode_forward(const kda_args *a) {
  if (const char *why = kda::invalid(a)) return kda::fail(KDA_INVALID, why);
  if (const char *why = kda_decode_declines(a)) return kda::fail(KDA_UNSUPPORTED, why);
  if (a->dim_k == 64) return run_dtype<64>(a);
  return a->dim_k == 128 ? run_dtype<128>(a) : run_dtype<256>(a);
}

const char *kda_decode_error(void) { return kda::error_text; }

}  // extern "C"

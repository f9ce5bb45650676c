// [V,K] in fp32 on Hopper, many heads: the state waits in shared memory, not in registers. One bulk copy brings a block's slab
// (16 KB, contiguous), one takes it back; in between it is read twice and written once where it lies. So a thread needs 48
// registers where decode_v_first needs 80, and eight blocks fit an SM, not five: 128 KB of loads in flight.
#pragma once

#include "feed.cuh"

namespace kda::decode {

template <int K_>
struct Bulk {
  static constexpr int K = K_;
  static constexpr int N = Vec<float>::N;
  static constexpr int kThreads = 128;
  static constexpr int LANES = K / N < 32 ? K / N : 32;         // that share a row
  static constexpr int PIECES = K / N / LANES;                  // 16-byte pieces of a row for one lane
  static constexpr int ROWS = 32 / (PIECES * N);                // rows of a lane
  static constexpr int kWarpRows = 32 / LANES * ROWS;
  static constexpr int kBlockRows = kThreads / 32 * kWarpRows;  // columns of V for one block: 16 KB
  static constexpr int kBlocksPerSM = K == 128 ? 8 : 6;  // 48 or 64 registers
  static_assert(2 * ROWS <= LANES, "the reduction leaves at most one sum in each lane");
};

template <class S>
struct BulkShared {
  alignas(128) float state[S::kBlockRows * S::K];
  Feed<S::K, S::kBlockRows> feed;
  alignas(8) uint64_t landed;
};

__device__ inline uint32_t shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// N numbers of a token from shared memory, 16 bytes at a time.
template <int N>
__device__ void read(const float *from, float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 four = *reinterpret_cast<const float4 *>(from + i);
    x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
  }
}

// Only the threads that read the state: barrier 2, beside `meet`'s 1.
template <int THREADS>
__device__ void readers_meet() {
  asm volatile("barrier.sync 2, %0;" ::"n"(THREADS) : "memory");
}

template <class S>
__global__ void __launch_bounds__(S::kThreads + kFeeder, S::kBlocksPerSM)
    decode_bulk(const __grid_constant__ kda_args a, int slabs) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int K = S::K, N = S::N, LANES = S::LANES, ROWS = S::ROWS, PIECES = S::PIECES;
  extern __shared__ __align__(128) unsigned char bytes[];
  BulkShared<S> &sm = *reinterpret_cast<BulkShared<S> *>(bytes);
  const Place p = place_of(a, slabs);
  const int first = p.slab * S::kBlockRows;
  zero_o(a, p, p.skipped ? p.span.begin : p.span.end, p.span.tail, first, S::kBlockRows);
  if (p.skipped) return;

  const int64_t base = (p.slot * a.heads_v + p.hv) * int64_t(K) * a.dim_v + int64_t(first) * K;
  const int rows = min(S::kBlockRows, a.dim_v - first);
  const uint32_t size = rows * K * 4, landed = shared_address(&sm.landed), state = shared_address(sm.state);
  if (threadIdx.x == S::kThreads && a.initial_state) {  // the feeder's first lane, before it feeds
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(landed));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(landed), "r"(size) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(state),
                 "l"(static_cast<const float *>(a.initial_state) + base), "r"(size), "r"(landed)
                 : "memory");
  }
  if (threadIdx.x >= S::kThreads) {
    __syncwarp();
    meet<S::kThreads + kFeeder>();  // the barrier is initialised
    return feed_tokens<1, S::kThreads + kFeeder>(a, p, sm.feed);
  }
  meet<S::kThreads + kFeeder>();

  const int lane = threadIdx.x % 32, in_row = lane % LANES;
  // Row `r` of this lane is row my_row + r * kNextRow of the slab
  const int my_row = threadIdx.x / 32 * S::kWarpRows + lane / LANES;
  constexpr int kNextRow = 32 / LANES;
  const auto piece = [&](int r, int j) {
    return reinterpret_cast<float4 *>(sm.state + (my_row + r * kNextRow) * K + (j * LANES + in_row) * N);
  };
  if (a.initial_state) {
    asm volatile(
        "{\n.reg .pred done;\nwait:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n@!done bra wait;\n}" ::"r"(landed)
        : "memory");
  } else {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int j = 0; j < PIECES; ++j) *piece(r, j) = float4{};
  }

  // After the reduction a lane holds S^T k (readers) or S^T q (writers, LANES / 2 further) of row `mine`
  constexpr int kCopies = LANES / (2 * ROWS);
  const int sum = in_row / kCopies, mine = sum % ROWS;
  const int my_x = my_row + mine * kNextRow;
  const bool writes = sum >= ROWS && in_row % kCopies == 0 && my_x < rows;

#pragma unroll 1
  for (int64_t t = p.span.begin; t < p.span.end; ++t) {
    const int now = (t - p.span.begin) % 2;
    meet<S::kThreads + kFeeder>();  // token t is ready
    float sums[2 * ROWS] = {};
#pragma unroll
    for (int j = 0; j < PIECES; ++j) {
      const int c = (j * LANES + in_row) * N;
      float d[N], k[N], q[N];
      read(&sm.feed.token[now].d[c], d);
      read(&sm.feed.token[now].k[c], k);
      read(&sm.feed.token[now].q[c], q);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        float s[N];
        Vec<float>::unpack(*piece(r, j), s);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          s[i] *= d[i];                                    // S <- Diag(exp(g)) S
          sums[r] = fmaf(s[i], k[i], sums[r]);                // S^T k
          sums[ROWS + r] = fmaf(s[i], q[i], sums[ROWS + r]);  // S^T q, before the write
        }
      }
    }
    kda::reduce_scatter<2 * ROWS, LANES>(sums, lane);
    // u = beta (v - S^T k), in the readers; every lane then fetches its rows' u
    const float u_mine = sm.feed.beta[now] * (sm.feed.v[now][my_x] - sums[0]);
    const float u_read = __shfl_sync(kda::kWarp, u_mine, lane / LANES * LANES + mine * kCopies);
    float u[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) u[r] = __shfl_sync(kda::kWarp, u_mine, lane / LANES * LANES + r * kCopies);
#pragma unroll
    for (int j = 0; j < PIECES; ++j) {
      const int c = (j * LANES + in_row) * N;
      float d[N], k[N];
      read(&sm.feed.token[now].d[c], d);
      read(&sm.feed.token[now].k[c], k);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        float s[N];
        Vec<float>::unpack(*piece(r, j), s);
#pragma unroll
        for (int i = 0; i < N; ++i) s[i] = fmaf(k[i], u[r], s[i] * d[i]);  // S <- Diag(exp(g)) S + k u^T
        *piece(r, j) = Vec<float>::pack(s);
      }
    }
    if (writes) kda::store(a.o, kda::row(a.o, p.span.b, t, p.hv) + first + my_x, fmaf(u_read, sm.feed.qk[now], sums[0]));
  }

  if (!a.final_state) return;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // what was written here is for the copy engine
  readers_meet<S::kThreads>();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(static_cast<float *>(a.final_state) + base),
                 "r"(state), "r"(size)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");  // shared memory must live until it was read
  }
#endif
}

}  // namespace kda::decode

// v1: the state in registers, split over V.
//
// Idea       S never leaves registers. Columns of V are independent (each has its own u), so a head is cut
//            into slabs of columns, one block each, enough to fill the GPU; within a warp, KL lanes share
//            a column and meet by shuffles, once a token.
// Changed    from v0: shared memory holds tokens, not the state. A chunk of 16 tokens is loaded (cp.async)
//            while the chunk before it is computed, activated once for the whole slab, and then run
//            through without a block barrier. q and k read the same decayed state in one pass:
//            o = (Diag(d) S)^T q + u <q, k>.
// Predicted  Four fp32 operations per state element and token: 65,536 lane-operations a token and head,
//            2048 warp instructions, about 3400 with loads, shuffles and preparation. 8192 tokens of
//            96 heads on 132 SMs at 1.755 GHz: 2.9 ms if every issue slot were used, 3.6 ms at 80 %.
//            Bytes alone would take 0.34 ms: arithmetic outside the tensor cores is the wall.
// Ledger     rung v1, direction forward: 8192-H96, mixed6-H96, 1024x8-H96 (measured, lost: NOTES.md).
//
// Serves     sm_80 and up; fp32 or bf16; every gate and beta kind; any K up to 256, any V.

#include <cuda_pipeline.h>

#include "../common/host.h"
#include "../common/warp.cuh"

namespace {

// One block: 4 warps; a warp owns 32 / KL groups of 4 columns; a lane owns KP / KL channels of 4 columns.
template <int KP_, int KL_>
struct Shape {
  static constexpr int KP = KP_;      // K rounded up: 64, 128 or 256
  static constexpr int KL = KL_;      // lanes that share a column
  static constexpr int kThreads = 128;
  static constexpr int kChunk = KP > 128 ? 8 : 16;  // tokens staged together: at most 52 KB, 2 x 26
  static constexpr int kCols = 4;     // columns of a lane: u of 4 columns is one reduction of 8 sums
  static constexpr int KT = KP / KL;  // channels of a lane
  static constexpr int kWarpCols = 32 / KL * kCols;
  static constexpr int kBlockCols = kThreads / 32 * kWarpCols;

  static_assert(KT % 4 == 0, "a lane reads its channels as float4");
  static_assert(2 * kCols <= KL, "the reduction leaves at most one sum in each lane");
  static_assert(KT * kCols <= 64, "the lane's part of the state must fit in registers");

  struct Shared {
    kda::Token<KP> token[kChunk];
    float v[kChunk][kBlockCols];
    float beta[kChunk];
    float qk[kChunk];
    // The raw chunk follows: q, k, g [kChunk, KP] and v [kChunk, kBlockCols] in their own dtypes.
  };

  static int64_t shared_bytes(const kda_args &a) {
    const int64_t size = kda::dtype_bytes(a.q.dtype), g_size = kda::dtype_bytes(a.g.dtype);
    return int64_t(sizeof(Shared)) + kChunk * (2 * KP * size + KP * g_size + kBlockCols * size);
  }
};

// 16-byte copies, `per_row` bytes of each token, fly while the block computes; 16 threads to a row.
// Rows that are not 16-byte aligned are copied by value: right, but nobody's fast path.
template <class S>
__device__ void stage(char *to, int to_stride, const kda_tensor &x, int64_t first, int tokens, int count,
                      bool by_16) {
  const int size = x.dtype == KDA_BF16 ? 2 : 4;
  const char *from = static_cast<const char *>(x.data) + first * size;
  const int64_t from_stride = x.stride_token * size;
  const int bytes = count * size, step = by_16 ? 16 : size;
  for (int t = threadIdx.x / 16; t < tokens; t += S::kThreads / 16)
    for (int i = threadIdx.x % 16 * step; i < bytes; i += 16 * step) {
      char *dst = to + t * to_stride + i;
      const char *src = from + t * from_stride + i;
      if (by_16) __pipeline_memcpy_async(dst, src, 16);
      else if (size == 4) *reinterpret_cast<float *>(dst) = *reinterpret_cast<const float *>(src);
      else *reinterpret_cast<uint16_t *>(dst) = *reinterpret_cast<const uint16_t *>(src);
    }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 3)
    recurrent(const __grid_constant__ kda_args a, int slabs, bool by_16) {
  constexpr int KP = S::KP, KL = S::KL, KT = S::KT, C = S::kChunk;
  extern __shared__ __align__(16) unsigned char memory[];
  auto &shared = *reinterpret_cast<typename S::Shared *>(memory);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int slab = blockIdx.x % slabs;  // fastest: the slabs of a head share its q, k, g in L2
  const int hv = blockIdx.x / slabs % a.heads_v;
  const int n = blockIdx.x / slabs / a.heads_v;
  const int h = hv / (a.heads_v / a.heads_qk);
  const kda::Span span = kda::span_of(a, n);
  const kda::Gate gate = kda::gate_of(a, hv);
  float bias[KP / 32];
  kda::load_bias<KP>(gate, a.dim_k, lane, bias);

  // Raw rows of the chunk in flight, each array 16-byte aligned: q, k [C,KP], v [C,kBlockCols], g [C,KP]
  const int size = a.q.dtype == KDA_BF16 ? 2 : 4, g_size = a.g.dtype == KDA_BF16 ? 2 : 4;
  char *raw_q = reinterpret_cast<char *>(memory) + sizeof(typename S::Shared);
  char *raw_k = raw_q + C * KP * size;
  char *raw_v = raw_k + C * KP * size;
  char *raw_g = raw_v + C * S::kBlockCols * size;
  const int block_col = slab * S::kBlockCols;
  const int block_cols = min(S::kBlockCols, a.dim_v - block_col);
  float raw_beta = 0.0f;  // thread t holds token t's

  auto stage_chunk = [&](int64_t t0) {
    const int tokens = static_cast<int>(min(int64_t(C), span.end - t0));
    if (tokens <= 0) return;
    stage<S>(raw_q, KP * size, a.q, kda::row(a.q, span.b, t0, h), tokens, a.dim_k, by_16);
    stage<S>(raw_k, KP * size, a.k, kda::row(a.k, span.b, t0, h), tokens, a.dim_k, by_16);
    stage<S>(raw_v, S::kBlockCols * size, a.v, kda::row(a.v, span.b, t0, hv) + block_col, tokens,
             block_cols, by_16);
    stage<S>(raw_g, KP * g_size, a.g, kda::row(a.g, span.b, t0, hv), tokens, a.dim_k, by_16);
    if (threadIdx.x < tokens)
      raw_beta = kda::load(a.beta, kda::row(a.beta, span.b, t0 + threadIdx.x, hv));
    __pipeline_commit();
  };
  stage_chunk(span.begin);

  // State: channel 4 * (KL * j + lane % KL) + i, column col + c, lies in s[4 * j + i][c]
  const int kl = lane % KL;
  const int warp_col = warp * S::kWarpCols + lane / KL * S::kCols;  // within the block
  const int col = block_col + warp_col;
  float s[KT][S::kCols];
#pragma unroll
  for (int i = 0; i < KT; ++i)
#pragma unroll
    for (int c = 0; c < S::kCols; ++c) {
      const int channel = i / 4 * 4 * KL + kl * 4 + i % 4;
      s[i][c] = a.initial_state && channel < a.dim_k && col + c < a.dim_v
                    ? kda::load(a.initial_state, a.state_dtype,
                                kda::state_at(a, n, hv, channel, col + c))
                    : 0.0f;
    }

  // After the reduction a lane holds one of 8 sums: S^T k of column `mine` (a reader), or S^T q of it
  // (a writer, KL / 2 lanes further); neighbours hold copies when KL > 8.
  constexpr int kCopies = KL / (2 * S::kCols);
  const int sum = kl / kCopies, mine = sum % S::kCols;
  const bool writes = sum >= S::kCols && kl % kCopies == 0 && col + mine < a.dim_v;

  for (int64_t t0 = span.begin; t0 < span.end; t0 += C) {
    const int tokens = static_cast<int>(min(int64_t(C), span.end - t0));
    __pipeline_wait_prior(0);
    __syncthreads();  // this chunk's raw rows have landed, and the last chunk has been read

    if (threadIdx.x < tokens) shared.beta[threadIdx.x] = kda::activate_beta(a.beta_kind, raw_beta);
    for (int t = warp; t < tokens; t += S::kThreads / 32) {
      kda::RawToken<KP> raw = {{raw_q + t * KP * size, a.q.dtype},
                               {raw_k + t * KP * size, a.q.dtype},
                               {raw_g + t * KP * g_size, a.g.dtype}};
      raw.load(a.dim_k, lane);
      const kda::Row v{raw_v + t * S::kBlockCols * size, a.q.dtype};
      uint32_t v_bits[(S::kBlockCols + 31) / 32];
      v.bits(lane, block_cols, v_bits);
#pragma unroll
      for (int x = lane; x < S::kBlockCols; x += 32) shared.v[t][x] = v.value(v_bits[x / 32]);
      const float qk = kda::activate<KP>(a, gate, bias, raw, lane, &shared.token[t]);
      if (lane == 0) shared.qk[t] = qk;
    }
    __syncthreads();
    stage_chunk(t0 + C);

    int64_t o_at = kda::row(a.o, span.b, t0, hv) + col + mine;
    for (int t = 0; t < tokens; ++t, o_at += a.o.stride_token) {
      float k[KT], sums[2 * S::kCols] = {};
#pragma unroll
      for (int j = 0; j < KT / 4; ++j) {
        const int channel = 4 * (KL * j + kl);
        const float4 d4 = *reinterpret_cast<const float4 *>(&shared.token[t].d[channel]);
        const float4 k4 = *reinterpret_cast<const float4 *>(&shared.token[t].k[channel]);
        const float4 q4 = *reinterpret_cast<const float4 *>(&shared.token[t].q[channel]);
        const float d[4] = {d4.x, d4.y, d4.z, d4.w}, q[4] = {q4.x, q4.y, q4.z, q4.w};
        k[4 * j] = k4.x, k[4 * j + 1] = k4.y, k[4 * j + 2] = k4.z, k[4 * j + 3] = k4.w;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int c = 0; c < S::kCols; ++c) {
            float &x = s[4 * j + i][c];
            x *= d[i];                                                // S <- Diag(exp(g)) S
            sums[c] = fmaf(x, k[4 * j + i], sums[c]);                 // S^T k
            sums[S::kCols + c] = fmaf(x, q[i], sums[S::kCols + c]);   // S^T q, before the write
          }
      }
      kda::reduce_scatter<2 * S::kCols, KL>(sums, lane);

      // u = beta (v - S^T k) in the readers; every lane then fetches its four columns' u
      const float u_mine = shared.beta[t] * (shared.v[t][warp_col + mine] - sums[0]);
      float u[S::kCols];
#pragma unroll
      for (int c = 0; c < S::kCols; ++c)
        u[c] = __shfl_sync(kda::kWarp, u_mine, lane / KL * KL + c * kCopies);
#pragma unroll
      for (int i = 0; i < KT; ++i)
#pragma unroll
        for (int c = 0; c < S::kCols; ++c) s[i][c] = fmaf(k[i], u[c], s[i][c]);  // S <- S + k u^T

      float u_read = u[0];
#pragma unroll
      for (int c = 1; c < S::kCols; ++c) u_read = mine == c ? u[c] : u_read;
      if (writes) kda::store(a.o, o_at, fmaf(u_read, shared.qk[t], sums[0]));
    }
  }

  for (int64_t t = span.end; t < span.tail; ++t)  // rows of no sequence
    if (writes) kda::store(a.o, kda::row(a.o, span.b, t, hv) + col + mine, 0.0f);
  if (!a.final_state) return;
#pragma unroll
  for (int i = 0; i < KT; ++i)
#pragma unroll
    for (int c = 0; c < S::kCols; ++c) {
      const int channel = i / 4 * 4 * KL + kl * 4 + i % 4;
      if (channel < a.dim_k && col + c < a.dim_v)
        kda::store(a.final_state, a.state_dtype, kda::state_at(a, n, hv, channel, col + c), s[i][c]);
    }
}

template <int KP, int KL>
kda_status run(const kda_args *a) {
  using S = Shape<KP, KL>;
  const int slabs = (a->dim_v + S::kBlockCols - 1) / S::kBlockCols;
  const bool by_16 = kda::rows_are_16_byte(a->q, a->dim_k) && kda::rows_are_16_byte(a->k, a->dim_k) &&
                     kda::rows_are_16_byte(a->v, a->dim_v) && kda::rows_are_16_byte(a->g, a->dim_k);
  return kda::launch(recurrent<S>, a->sequences * a->heads_v * slabs, S::kThreads, S::shared_bytes(*a),
                     a->stream, "v1", *a, slabs, by_16);
}

// More lanes on a column make more, lighter blocks: worth it only until the SMs are full.
kda_status dispatch(const kda_args *a) {
  const int64_t columns = a->sequences * a->heads_v * a->dim_v;
  const bool few = columns <= 132 * 32;         // at most two 16-column blocks for each of 132 SMs
  if (a->dim_k <= 64) return run<64, 16>(a);
  if (a->dim_k <= 128) return few ? run<128, 32>(a) : run<128, 16>(a);
  return few ? run<256, 32>(a) : run<256, 16>(a);
}

}  // namespace

extern "C" {

const char *kda_v1_declines(const kda_args *a) {
  if (const char *why = kda::invalid(a)) return why;
  if (a->dim_k > 256) return "v1 serves K up to 256";
  if (a->state_indices) return "state_indices: only decode serves paged states";
  return nullptr;
}

int64_t kda_v1_workspace_bytes(const kda_args *) { return 0; }

kda_status kda_v1_forward(const kda_args *a) {
  if (const char *why = kda::invalid(a)) return kda::fail(KDA_INVALID, why);
  if (const char *why = kda_v1_declines(a)) return kda::fail(KDA_UNSUPPORTED, why);
  return dispatch(a);
}

const char *kda_v1_error(void) { return kda::error_text; }

}  // extern "C"

// Kernel 1 of v2: everything about a chunk that does not depend on the state. One block per (chunk, value head),
// all of them independent.
//
// The anchor stands in the middle of the chunk, between rows 7 and 8. A thread owns two channels of one half of the rows,
// so each running sum of log gates starts or ends at the anchor and never leaves the thread; with p = 2^(sum from the half's
// first row through i) and s = 2^(sum after i to the half's last row), both <= 1:
//              upper half (rows 0-7)                lower half (rows 8-15)
//   e^(G_i - anchor)   "up"    p / 2^sum(upper)     p
//   e^(anchor - G_j)   "down"  s                    s / 2^sum(lower)
//   e^(G_i)                    p                    p * 2^sum(upper)
//   e^(G_C - G_j)              s * 2^sum(lower)     s
// L and M are products of up and down tiles. Between the halves both factors are <= 1, exact at any gate. Inside a half the
// division needs 2^-sum, at most 2^(8 * 5 * log2 e) = 2^57.7 for a gate of at least -5. A channel whose half decays by more
// than 2^-60 (unbounded gates, -inf) leaves the tensor-core product of that half (its up or down factor is set to 0) and
// its few pairs (j, i], 36 for M and 28 for L, are summed one by one in fp32: exact again, and only there slower.
#pragma once
#include "../common/warp.cuh"
#include "traits.cuh"

namespace kda::v2 {

struct Prepare {
  static constexpr int THREADS = 128;       // 64 channel pairs x 2 halves
  static constexpr int BLOCKS_PER_SM = 7;     // 72 registers a thread; 7 x 18 KB of shared memory fits sm_80 too
  static constexpr float SPAN_LIMIT = -60.f;  // log2; up * down stays under 2^120, finite even where it is masked
};
static_assert(Prepare::THREADS == K / 2 * (C / HALF), "a thread owns one channel pair of one half of the rows");

struct PrepareShared {
  unsigned char k_up[Chunk::TILE], q_up[Chunk::TILE], k_down[Chunk::TILE];  // [C,K] bf16, swizzled
  uint32_t t_fragment[32][4], t_low[32];
  float l_columns[C][C + 4];        // L transposed; 20 words a row: the four t lanes of an accumulator hit banks 8 apart
  float pairs[4][2][HALF][HALF];    // [warp][L, M][i][j]: what the pairwise path adds
  float half_sum[2][K];             // log2 decay over each half
  float squares[4][2 * HALF];       // [warp][q rows, k rows]: a warp's 64 channels of |x|^2
  float norms[4][2 * HALF];
  int pairwise[4];
};

// Two neighbouring channels of q, k or g: `T` is float2, or packed bf16.
template <typename T>
__device__ inline const char *pair_at(const kda_tensor &x, int64_t element) {
  return static_cast<const char *>(x.data) + element * static_cast<int64_t>(sizeof(T) / 2);
}
template <typename T>
__device__ inline T load_pair(const kda_tensor &x, int64_t element) {
  return *reinterpret_cast<const T *>(pair_at<T>(x, element));
}
__device__ inline float2 gate_pair(float2 g) { return g; }
__device__ inline float2 gate_pair(uint32_t g) { return {low_bf16(g), high_bf16(g)}; }

// What turns a raw gate into a log decay, for two channels.
struct GateConstants {
  float rate, bound;
  float2 bias;
};
template <int GATE>
__device__ inline GateConstants gate_constants(const kda_args &a, int hv, int channel) {
  GateConstants c{1.f, a.lower_bound * LOG2E, {0.f, 0.f}};
  if constexpr (GATE != KDA_GATE_LOG) {
    if (a.A_log) c.rate = expf(a.A_log[hv]);
    if (a.dt_bias) c.bias = {a.dt_bias[hv * K + channel], a.dt_bias[hv * K + channel + 1]};
  }
  return c;
}

// The log decay in powers of two. The same functions as common's, with log2 e folded into the constants and denormals
// flushed, which spares a good part of this kernel's instructions.
template <int GATE>
__device__ inline float log2_decay(float x, float bias, const GateConstants &c) {
  if constexpr (GATE == KDA_GATE_LOG) return x * LOG2E;
  if constexpr (GATE == KDA_GATE_SIGMOID) return c.bound * reciprocal(1.f + exp2_approx(-c.rate * LOG2E * (x + bias)));
  return -c.rate * LOG2E * softplus(x + bias);
}
template <int GATE>
__device__ inline float2 log2_decay(float2 x, const GateConstants &c) {
  return {log2_decay<GATE>(x.x, c.bias.x, c), log2_decay<GATE>(x.y, c.bias.y, c)};
}

// The chunk in a slot: its batch row, its first token there, and its tokens (0 for a spare slot).
struct Place {
  int64_t b, token;
  int rows;
};
__device__ inline Place place_of(const kda_args &a, uint32_t slot) {
  const int64_t n = sequence_of(a, slot);
  const Span span = span_of(a, n);
  const int64_t token = span.begin + (slot - first_slot(a, n)) * C;
  const int64_t left = token < span.begin ? 0 : span.end - token;
  return {span.b, token, left < 0 ? 0 : left < C ? static_cast<int>(left) : C};
}

// L [i][j] (strictly lower, times beta_i) in `l` as accumulators of the two column halves -> T' = (I + L)^-1 diag(beta).
// Forward substitution in fp32, a column per lane: no power of L is ever formed, so repeated keys (L all ones) are harmless.
__device__ __forceinline__ void write_inverse(PrepareShared &sm, float (&l)[2][4], float beta, char *out, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = g + (e / 2) * 8, j = half * 8 + 2 * t + (e & 1);
      const float beta_i = __shfl_sync(ALL_LANES, beta, i);
      sm.l_columns[j][i] = i > j ? l[half][e] * beta_i : 0.f;
    }
  __syncwarp();
  const int column = lane & 15;  // lanes 16-31 repeat lanes 0-15
  float x[C];
#pragma unroll
  for (int i = 0; i < C; ++i) x[i] = i == column ? 1.f : 0.f;
#pragma unroll
  for (int j = 0; j < C - 1; ++j)  // x[j] is final: take it out of the rows below
#pragma unroll
    for (int block = (j + 1) / 4; block < C / 4; ++block) {
      const float4 m = *reinterpret_cast<const float4 *>(&sm.l_columns[j][block * 4]);
      const float lij[4] = {m.x, m.y, m.z, m.w};
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (block * 4 + e > j) x[block * 4 + e] = fmaf(-lij[e], x[j], x[block * 4 + e]);
    }
  // Element (i, column) of T' belongs to lane 4 (i % 8) + (column % 8) / 2, low half if column is even.
#pragma unroll
  for (int i = 0; i < C; i += 2) {
    // Even columns take row i, odd columns row i + 1, so that each lane stores a whole register.
    const bool odd = column & 1;
    const float own = x[i] * beta, next = x[i + 1] * beta;
    const float other = __shfl_xor_sync(ALL_LANES, odd ? own : next, 1);
    const float even_value = odd ? other : own, odd_value = odd ? next : other;
    const uint32_t high = pack_bf16(even_value, odd_value);
    const uint32_t low = pack_bf16(even_value - low_bf16(high), odd_value - high_bf16(high));
    const int owner = ((i + odd) & 7) * 4 + (column & 7) / 2;
    if (lane < 8) {
      sm.t_fragment[owner][i < 8 ? 0 : 2] = high;
      if (i < 8) sm.t_fragment[owner][1] = low;
    } else if (lane < 16 && i >= 8) {
      sm.t_fragment[owner][3] = high;
      sm.t_low[owner] = low;
    }
  }
  __syncwarp();
  reinterpret_cast<uint4 *>(out + Chunk::T)[lane] = *reinterpret_cast<const uint4 *>(sm.t_fragment[lane]);
  reinterpret_cast<uint32_t *>(out + Chunk::M)[4 * lane + 1] = sm.t_low[lane];
}

template <int GATE, typename GatePair>  // GatePair: float2 or uint32_t (packed bf16)
__global__ void __launch_bounds__(Prepare::THREADS, Prepare::BLOCKS_PER_SM)
    prepare(const __grid_constant__ kda_args a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  PrepareShared &sm = *reinterpret_cast<PrepareShared *>(shared);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid / 32;
  const int half = tid / 64, channel = 2 * (tid & 63);
  const int hv = blockIdx.x % a.heads_v;
  const uint32_t slot = blockIdx.x / a.heads_v;

  // Packed tokens behind the last sequence belong to nobody: their output is 0. Slot s looks after tokens [16 s, 16 s + 16).
  if (a.cu_seqlens_bits && (slot + 1) * static_cast<int64_t>(C) > cu_seqlen(a, a.sequences)) {
    const int64_t end = cu_seqlen(a, a.sequences);
#pragma unroll 1
    for (int i = tid / 16; i < C; i += Prepare::THREADS / 16) {
      const int64_t token = slot * static_cast<int64_t>(C) + i;
      if (token >= end && token < a.tokens)
        reinterpret_cast<uint4 *>(static_cast<uint16_t *>(a.o.data) + row(a.o, 0, token, hv))[tid & 15] = uint4{0, 0, 0, 0};
    }
  }
  const Place chunk = place_of(a, slot);
  if (chunk.rows == 0) return;

  // The warp that inverts does half as much again as the others. Warps of one number share a scheduler, so the part
  // moves from block to block.
  const int part = (warp + blockIdx.x + (blockIdx.x >> 7)) & 3;
  float beta = 0.f;
  if (part == 0 && (lane & 15) < chunk.rows) 
    beta = activate_beta(a.beta_kind, load(a.beta, row(a.beta, chunk.b, chunk.token + (lane & 15), hv)));

  // ---- Load rows half * 8 .. + 8 of two channels. Rows past the end: k = q = 0 and a log decay of 0
  // (a padded zero logit would decay).
  const int row0 = half * HALF;
  const int h = hv / (a.heads_v / a.heads_qk);
  const GateConstants gate = gate_constants<GATE>(a, hv, channel);
  uint32_t q[HALF], k[HALF];  // bf16 pairs
  float2 g[HALF];             // log2 decay
  {
    const char *from_q = pair_at<uint32_t>(a.q, row(a.q, chunk.b, chunk.token + row0, h) + channel);
    const char *from_k = pair_at<uint32_t>(a.k, row(a.k, chunk.b, chunk.token + row0, h) + channel);
    const char *from_g = pair_at<GatePair>(a.g, row(a.g, chunk.b, chunk.token + row0, hv) + channel);
    const int64_t step_q = a.q.stride_token * 2, step_k = a.k.stride_token * 2;
    const int64_t step_g = a.g.stride_token * static_cast<int64_t>(sizeof(GatePair) / 2);
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      q[i] = 0, k[i] = 0, g[i] = float2{0.f, 0.f};
      if (row0 + i < chunk.rows) {
        q[i] = *reinterpret_cast<const uint32_t *>(from_q);
        k[i] = *reinterpret_cast<const uint32_t *>(from_k);
        g[i] = gate_pair(*reinterpret_cast<const GatePair *>(from_g));
      }
      from_q += step_q, from_k += step_k, from_g += step_g;
    }
  }
  if (a.l2norm) {
    float x[16];
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      x[i] = low_bf16(q[i]) * low_bf16(q[i]) + high_bf16(q[i]) * high_bf16(q[i]);
      x[HALF + i] = low_bf16(k[i]) * low_bf16(k[i]) + high_bf16(k[i]) * high_bf16(k[i]);
    }
    reduce_scatter<2 * HALF, 32>(x, lane);
    if (lane % 2 == 0) sm.squares[warp][first_of<2 * HALF, 32>(lane)] = x[0];
  }
  {
    float2 sum{0.f, 0.f};
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      if (row0 + i < chunk.rows) g[i] = log2_decay<GATE>(g[i], gate);
      sum.x += g[i].x;
      sum.y += g[i].y;
    }
    *reinterpret_cast<float2 *>(&sm.half_sum[half][channel]) = sum;
  }
  __syncthreads();

  // ---- Norms: lane r < 8 of a warp has q row r of its half, lane 8 + r the k row; scale goes into q.
  if (lane < 2 * HALF) {
    float norm = 1.f;
    if (a.l2norm) norm = rsqrt_approx(sm.squares[warp][lane] + sm.squares[warp ^ 1][lane] + kNormEps);
    sm.norms[warp][lane] = lane < HALF ? norm * a.scale : norm;
  }
  __syncwarp();
  const float *q_norm = sm.norms[warp], *k_norm = sm.norms[warp] + HALF;
  // The normalised key is rounded before any gate touches it. A weak gate then rounds back to the same key in every tile
  // and token, so that what is written along it can be erased along it; rounded apart, the differences pile up.
#pragma unroll
  for (int i = 0; i < HALF; ++i) k[i] = pack_bf16(low_bf16(k[i]) * k_norm[i], high_bf16(k[i]) * k_norm[i]);

  const float2 upper = *reinterpret_cast<const float2 *>(&sm.half_sum[0][channel]);
  const float2 lower = *reinterpret_cast<const float2 *>(&sm.half_sum[1][channel]);
  const float2 own = half ? lower : upper;
  const bool far_x = !(own.x >= Prepare::SPAN_LIMIT), far_y = !(own.y >= Prepare::SPAN_LIMIT);  // true for -inf
  const float2 inverse{far_x ? 0.f : exp2_approx(-own.x), far_y ? 0.f : exp2_approx(-own.y)};
  const float2 decay_upper{exp2_approx(upper.x), exp2_approx(upper.y)};
  const float2 decay_lower{exp2_approx(lower.x), exp2_approx(lower.y)};

  char *out = chunk_at(a, slot, hv);
  // This thread's word in row i of a tile: the swizzle is an XOR with i * 16, in the image as in shared memory, since
  // both tiles start at multiples of 256 bytes.
  const uint32_t word = row0 * K * 2 + channel * 2;
  const uintptr_t out_word = reinterpret_cast<uintptr_t>(out) + word;
  if (half)
    *reinterpret_cast<float2 *>(out + Chunk::DECAY + 4 * channel) =
        float2{decay_upper.x * decay_lower.x, decay_upper.y * decay_lower.y};

  // ---- Six tiles. Forward over rows for everything with p, backward for everything with s.
  {
    const float2 up = half ? float2{1.f, 1.f} : inverse, state = half ? decay_upper : float2{1.f, 1.f};
    float2 sum{0.f, 0.f};
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      sum.x += g[i].x;
      sum.y += g[i].y;
      const float px = exp2_approx(sum.x), py = exp2_approx(sum.y);
      const float kx = low_bf16(k[i]) * px, ky = high_bf16(k[i]) * py;
      const float qx = low_bf16(q[i]) * q_norm[i] * px, qy = high_bf16(q[i]) * q_norm[i] * py;
      const uint32_t at = (word ^ (i * 16)) + i * K * 2;
      char *image = reinterpret_cast<char *>((out_word ^ (i * 16)) + i * K * 2);
      *reinterpret_cast<uint32_t *>(sm.k_up + at) = pack_bf16(kx * up.x, ky * up.y);
      *reinterpret_cast<uint32_t *>(sm.q_up + at) = pack_bf16(qx * up.x, qy * up.y);
      *reinterpret_cast<uint32_t *>(image + Chunk::K_DECAYED) = pack_bf16(kx * state.x, ky * state.y);
      *reinterpret_cast<uint32_t *>(image + Chunk::Q_DECAYED) = pack_bf16(qx * state.x, qy * state.y);
    }
  }
  {
    const float2 down = half ? inverse : float2{1.f, 1.f}, state = half ? float2{1.f, 1.f} : decay_lower;
    float2 sum{0.f, 0.f};
#pragma unroll
    for (int i = HALF - 1; i >= 0; --i) {
      const float kx = low_bf16(k[i]) * exp2_approx(sum.x);
      const float ky = high_bf16(k[i]) * exp2_approx(sum.y);
      const uint32_t at = (word ^ (i * 16)) + i * K * 2;
      char *image = reinterpret_cast<char *>((out_word ^ (i * 16)) + i * K * 2);
      *reinterpret_cast<uint32_t *>(sm.k_down + at) = pack_bf16(kx * down.x, ky * down.y);
      *reinterpret_cast<uint32_t *>(image + Chunk::K_REST) = pack_bf16(kx * state.x, ky * state.y);
      sum.x += g[i].x;
      sum.y += g[i].y;
    }
  }
  // ---- Channels that decay too far for a factor: `reach` is k_j decayed over (j, i], step by step, at most |k_j|.
  const bool pairwise = __any_sync(ALL_LANES, far_x || far_y);
  if (lane == 0) sm.pairwise[warp] = pairwise;
  if (pairwise) {  // rare: all is found and read again, row by row, so that it holds no registers on the way here
    const Place again = place_of(a, slot);
    const GateConstants again_gate = gate_constants<GATE>(a, hv, channel);
    float2 reach[HALF] = {};
#pragma unroll 1
    for (int i = 0; i < HALF; ++i) {
      const int64_t token = again.token + row0 + i;
      const bool valid = row0 + i < again.rows;
      const uint32_t qi = valid ? load_pair<uint32_t>(a.q, row(a.q, again.b, token, h) + channel) : 0;
      uint32_t ki = valid ? load_pair<uint32_t>(a.k, row(a.k, again.b, token, h) + channel) : 0;
      ki = pack_bf16(low_bf16(ki) * k_norm[i], high_bf16(ki) * k_norm[i]);
      const float2 gi = valid ? log2_decay<GATE>(gate_pair(load_pair<GatePair>(a.g, row(a.g, again.b, token, hv) + channel)), again_gate)
                              : float2{0.f, 0.f};
      const float2 key{far_x ? low_bf16(ki) : 0.f, far_y ? high_bf16(ki) : 0.f};
      const float2 query{low_bf16(qi) * q_norm[i], high_bf16(qi) * q_norm[i]};
      const float2 decay{exp2_approx(gi.x), exp2_approx(gi.y)};
      float sums[2 * HALF];  // L[i][j], then M[i][j]
#pragma unroll
      for (int j = 0; j < HALF; ++j) {
        reach[j] = i == j ? key : float2{reach[j].x * decay.x, reach[j].y * decay.y};
        sums[j] = key.x * reach[j].x + key.y * reach[j].y;
        sums[HALF + j] = query.x * reach[j].x + query.y * reach[j].y;
      }
      reduce_scatter<2 * HALF, 32>(sums, lane);
      const int sum = first_of<2 * HALF, 32>(lane);
      if (lane % 2 == 0) sm.pairs[warp][sum / HALF][i][sum % HALF] = sums[0];
    }
  }
  __syncthreads();
  if (part > 1) return;

  // ---- Part 0: L = k_up k_down^T, part 1: M = q_up k_down^T, both [C,C] in two accumulators of 8 columns j.
  const int t = lane % 4, row_g = lane / 4;
  // A: matrices (rows 0-7, unit 0), (8-15, 0), (0-7, 1), (8-15, 1); B: (columns 0-7, 0), (0-7, 1), (8-15, 0), (8-15, 1).
  const int row_a = lane & 15, row_b = (lane & 7) + (lane & 16) / 2;
  const uint32_t a_base = shared_address(part == 0 ? sm.k_up : sm.q_up) + tile_offset(row_a, lane / 16);
  const uint32_t b_base = shared_address(sm.k_down) + tile_offset(row_b, (lane / 8) & 1);
  float acc[2][4] = {};
#pragma unroll
  for (int step = 0; step < K / 16; ++step) {  // 16 channels are units 2 step, 2 step + 1: bits that the swizzle only XORs
    uint32_t fa[4], fb[4];
    ldmatrix(fa, a_base ^ (step * 32));
    ldmatrix(fb, b_base ^ (step * 32));
    mma(acc[0], fa, fb[0], fb[1]);
    mma(acc[1], fa, fb[2], fb[3]);
  }
#pragma unroll
  for (int w = 0; w < 4; ++w)
    if (sm.pairwise[w]) {  // warps 0, 1 held rows 0-7, warps 2, 3 rows 8-15: the diagonal blocks
      const int block = w / 2;
      acc[block][2 * block] += sm.pairs[w][part][row_g][2 * t];
      acc[block][2 * block + 1] += sm.pairs[w][part][row_g][2 * t + 1];
    }
  if (part == 0) {
    write_inverse(sm, acc, beta, out, lane);
  } else {
    // The accumulator of columns 8 b .. holds, lane for lane, the B fragment's registers of that block: no exchange at all.
    const auto masked = [&](int block, int high) {  // elements (i, j), (i, j + 1) on or below the diagonal
      const int i = row_g + high * 8, j = block * 8 + 2 * t;
      return pack_bf16(i >= j ? acc[block][2 * high] : 0.f, i > j ? acc[block][2 * high + 1] : 0.f);
    };
    uint32_t *m = reinterpret_cast<uint32_t *>(out + Chunk::M) + 4 * lane;
    m[0] = masked(0, 0);
    *reinterpret_cast<uint2 *>(m + 2) = uint2{masked(0, 1), masked(1, 1)};
  }
}

}  // namespace kda::v2

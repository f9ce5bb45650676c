// Kernel 1 of v4: everything about a chunk of 64 tokens that does not depend on the state. One block per (chunk, value
// head), all of them independent.
//
// The chunk is four blocks I of 16 tokens, and a decay over many tokens is a product of factors <= 1 that meet at the
// blocks' edges: with p_i the sum of log gates from the block's first token through i, r_j the sum after j to the block's
// last, and s_I the sum over block I,
//   e^(G_i) = e^(p_i) prod_{M<I} e^(s_M)                       e^(G_C - G_j) = e^(r_j) prod_{M>J} e^(s_M)
//   e^(G_i - G_j) = e^(p_i) e^(r_j) prod_{J<M<I} e^(s_M)       for blocks I > J
// No sum is ever subtracted, so -30 and -inf are as exact as -0.001. Only inside a block is a factor above 1 needed:
//   e^(G_i - G_j) = e^(p_i) e^(-p_j),   e^(-p_j) = e^(r_j) e^(-s_I) <= e^(16 * 5) = 2^115.4   for a gate of at least -5,
// and there the exponents of bf16, those of fp32, reach far enough on both sides: keys carry a factor 2^30 where e^(p_i)
// makes them small. A channel whose block decays by more (unbounded gates, -inf) leaves that tensor-core product (its
// factor e^(-p_j) is set to 0), and its pairs (j, i] of the block are summed one by one in fp32: exact again, and only
// there slower.
//
// A thread owns two channels of one block's 16 rows, so running sums never leave it. Four tiles feed the tensor cores:
//   a_k = k e^p   a_q = scale q e^p   b_far = k e^r   b_near = k e^(-p)
// a_k and a_q stand where the raw rows of k and q landed, the other two where the raw gates did.
#pragma once
#include "../common/warp.cuh"
#include "ptx.cuh"
#include "traits.cuh"

namespace kda::v4 {

constexpr float LOG2E = 1.4426950408889634f;

struct Prepare {
  static constexpr int THREADS = 256;  // 64 channel pairs x 4 blocks of rows
  static constexpr int BLOCKS_PER_SM = 3;  // 80 registers a thread; one block loads while others compute
  static constexpr float SPAN_LIMIT = -116.f;  // log2 of a block's decay: 16 * 5 * log2 e = 115.4 stays on the tensor cores
  static constexpr float OFFSET = 0x1p30f;     // on k and q before their decay, taken out again of every result
  static constexpr float UNDO = 1 / OFFSET;
  static constexpr int PAIRS = BLOCKS * (BLOCKS - 1) / 2;  // blocks (I,J) below the diagonal
};
static_assert(Prepare::THREADS == K / 2 * BLOCKS, "a thread owns one channel pair of one block of rows");

// Row-major [16,16] matrix as B operand in two bf16 parts: word 2 m + {0, 1} of a row has {high, low} of columns 2m, 2m + 1.
// 24 words a row: the 16 lanes that read 8 bytes at once hit 32 different banks.
using Split = uint32_t[BLOCK][24];

struct PrepareShared {
  unsigned char a_k[Chunk::TILE], a_q[Chunk::TILE];  // [C,K] bf16 in panels, as in the image; first the raw k and q
  union {
    unsigned char raw_g[2 * Chunk::TILE];  // bf16 in panels, or fp32 [C,K]
    struct {
      union {
        unsigned char b_far[Chunk::TILE];
        Split l[Prepare::PAIRS];  // L(I,J), I > J
      };
      union {
        unsigned char b_near[Chunk::TILE];
        struct {
          unsigned char t[Chunk::PANEL], m[Chunk::PANEL];  // T' and M of the image
        };
      };
    };
  };
  union {
    Split t_block[BLOCKS];                    // T(I,I) = (I + L(I,I))^-1
    float l_columns[BLOCKS][BLOCK][BLOCK + 8];  // before that, L(I,I) transposed
  };
  float block_sum[BLOCKS][K];  // log2 decay over each block
  float between[3][K];         // e^(s_1), e^(s_2), e^(s_1 + s_2): what lies between blocks (0,2), (1,3), (0,3)
  float q_norm[C], k_norm[C];  // with OFFSET, and the scale in q's
  float beta[C];
  int pairwise[2 * BLOCKS];    // per warp: some channel of its block decays too far
};
static_assert(sizeof(PrepareShared) <= 75 * 1024, "three blocks must fit the 228 KB of an SM, which takes 1 KB more for each");

__device__ __forceinline__ float exp2_approx(float x) {  // 2 ulp; -inf gives 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {  // 1 ulp; +inf gives 0
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Four 8x8 bf16 matrices; lane l gives the address of row l % 8 of matrix l / 8 and has elements (g, 2t..2t+1) of each.
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
// c [16,8] += a [16,16] b [16,8] by one warp. a as in wgmma (ptx.cuh), b0 (2t..2t+1, g), b1 (2t+8.., g),
// c[0], c[1] (g, 2t..2t+1), c[2], c[3] (g+8, 2t..): two neighbouring c, rounded in pairs, are an a.
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Part of a block's warps meets: barrier `id` ends when `threads` of them have arrived or wait.
template <int id, int threads>
__device__ __forceinline__ void meet() { asm volatile("barrier.sync %0, %1;" ::"n"(id), "n"(threads) : "memory"); }
template <int id, int threads>
__device__ __forceinline__ void arrive() { asm volatile("barrier.arrive %0, %1;" ::"n"(id), "n"(threads) : "memory"); }

// ---- Gates. The log2 decay is rate * y with y = shape(raw gate): one fused multiply-add into a running sum.
struct GateConstants {
  float rate;     // of the decay, in powers of two
  float slope;    // sigmoid: what 2's exponent in 2^(slope (x + bias)) needs
  float2 bias;
};
template <int GATE>
__device__ inline GateConstants gate_constants(const kda_args &a, int hv, int channel) {
  GateConstants c{LOG2E, 0.f, {0.f, 0.f}};
  if constexpr (GATE != KDA_GATE_LOG) {
    const float rate = a.A_log ? expf(a.A_log[hv]) : 1.f;
    c.rate = LOG2E * (GATE == KDA_GATE_SIGMOID ? a.lower_bound : -rate);
    c.slope = -rate * LOG2E;
    if (a.dt_bias) c.bias = *reinterpret_cast<const float2 *>(a.dt_bias + hv * K + channel);
  }
  return c;
}
template <int GATE>
__device__ inline float gate_shape(float x, float bias, const GateConstants &c) {
  if constexpr (GATE == KDA_GATE_SIGMOID) return reciprocal(1.f + exp2_approx(c.slope * (x + bias)));
  if constexpr (GATE == KDA_GATE_SOFTPLUS) return softplus(x + bias);
  return x;
}
template <int GATE>
__device__ inline float2 gate_shape(float2 x, const GateConstants &c) {
  return {gate_shape<GATE>(x.x, c.bias.x, c), gate_shape<GATE>(x.y, c.bias.y, c)};
}
__device__ inline void add_decay(float2 &sum, float2 y, const GateConstants &c) {
  sum.x = fmaf(y.x, c.rate, sum.x);
  sum.y = fmaf(y.y, c.rate, sum.y);
}
__device__ inline float2 widen_pair(float2 g) { return g; }
__device__ inline float2 widen_pair(uint32_t g) { return {low_bf16(g), high_bf16(g)}; }

// ---- The sequence that owns `slot`: the last n whose first slot is <= slot. All 32 lanes probe at once, so 1024 sequences
// take two rounds of loads and not ten.
__device__ inline int64_t sequence_of(const kda_args &a, uint32_t slot) {
  if (!a.cu_seqlens_bits) return slot / static_cast<uint32_t>(chunks_of(a.tokens));
  const int lane = threadIdx.x & 31;
  int64_t low = 0, high = a.sequences;  // the answer is in [low, high)
  while (high - low > 1) {
    const int64_t step = (high - low + 31) / 32, n = low + lane * step;
    const unsigned before = __ballot_sync(ALL_LANES, n < high && first_slot(a, n) <= slot);
    const int last = before ? 31 - __clz(before) : 0;
    low += last * step;
    high = low + step < high ? low + step : high;
  }
  return low;
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

// Copies rows of `UNITS` 16-byte units to shared memory, zeros past the chunk's last row.
template <int UNITS>
__device__ __forceinline__ void fetch(const kda_tensor &x, const Place &chunk, int head, unsigned char *to) {
  constexpr int STEP = Prepare::THREADS / UNITS;  // rows in one go
  static_assert(STEP % 8 == 0, "the swizzle of a thread's rows must not change");
  const int unit = threadIdx.x % UNITS, first = threadIdx.x / UNITS;
  const int64_t size = UNITS * 16 / K;  // bytes of a number
  const char *from = static_cast<const char *>(x.data) + row(x, chunk.b, chunk.token + first, head) * size + unit * 16;
  const uint32_t at = shared_address(to) + (UNITS == 16 ? unit / 8 * Chunk::PANEL + panel_offset(first, unit % 8) : first * K * 4 + unit * 16);
#pragma unroll
  for (int i = 0; i < C / STEP; ++i) {
    cp_async(at + i * STEP * (UNITS == 16 ? 128 : K * 4), from, first + i * STEP < chunk.rows);
    from += STEP * x.stride_token * size;
  }
}

// 1 / |x| of 16 raw rows, times `scale`: the diagonal of X X^T, whose two operands are the same registers.
__device__ __forceinline__ void row_norms(const unsigned char *tile, int row0, float scale, float *norm, int lane) {
  const uint32_t at = shared_address(tile) + panel_offset(row0 + (lane & 15), lane / 16);
  float upper[4] = {}, lower[4] = {};
#pragma unroll
  for (int step = 0; step < K / 16; ++step) {
    uint32_t x[4];
    ldmatrix(x, (at ^ (step % 4 * 32)) + step / 4 * Chunk::PANEL);
    mma(upper, x, x[0], x[2]);
    mma(lower, x, x[1], x[3]);
  }
  const int g = lane / 4;
  if (lane % 4 == g / 2) {  // column 2t or 2t + 1 is row g
    norm[row0 + g] = scale * rsqrt_approx((g & 1 ? upper[1] : upper[0]) + kNormEps);
    norm[row0 + 8 + g] = scale * rsqrt_approx((g & 1 ? lower[3] : lower[2]) + kNormEps);
  }
}

// What the tensor cores left out, for one block of rows and 64 channels by one warp: L [i][j], then M [i][j], to `sums`.
// `reach` is k_j decayed over (j, i], step by step, at most |k_j|. Rare: all is read again, so that it holds no registers
// anywhere else.
template <int GATE, class GatePair>
__device__ __forceinline__ void sum_pairs(const kda_args &a, const PrepareShared &sm, uint32_t slot, int hv, int row0, int channel,
                                          bool far_x, bool far_y, float *sums, int lane) {
  const Place chunk = place_of(a, slot);
  const int h = hv / (a.heads_v / a.heads_qk);
  const GateConstants gate = gate_constants<GATE>(a, hv, channel);
  float2 reach[BLOCK] = {};
#pragma unroll 1
  for (int i = 0; i < BLOCK; ++i) {
    uint32_t qi = 0, ki = 0;
    float2 decay{1.f, 1.f};
    if (row0 + i < chunk.rows) {
      const int64_t token = chunk.token + row0 + i;
      qi = *reinterpret_cast<const uint32_t *>(static_cast<const uint16_t *>(a.q.data) + row(a.q, chunk.b, token, h) + channel);
      ki = *reinterpret_cast<const uint32_t *>(static_cast<const uint16_t *>(a.k.data) + row(a.k, chunk.b, token, h) + channel);
      const float2 y = gate_shape<GATE>(
          widen_pair(static_cast<const GatePair *>(a.g.data)[(row(a.g, chunk.b, token, hv) + channel) / 2]), gate);
      decay = {exp2_approx(y.x * gate.rate), exp2_approx(y.y * gate.rate)};
    }
    const float kn = sm.k_norm[row0 + i], qn = sm.q_norm[row0 + i] * Prepare::UNDO;
    ki = pack_bf16(low_bf16(ki) * kn, high_bf16(ki) * kn);
    const float2 key{far_x ? low_bf16(ki) * Prepare::UNDO : 0.f, far_y ? high_bf16(ki) * Prepare::UNDO : 0.f};
    const float2 query{low_bf16(qi) * qn, high_bf16(qi) * qn};
    const int first = first_of<BLOCK, 32>(lane);
    float x[BLOCK];
#pragma unroll
    for (int j = 0; j < BLOCK; ++j) {
      reach[j] = i == j ? key : float2{reach[j].x * decay.x, reach[j].y * decay.y};
      x[j] = key.x * reach[j].x + key.y * reach[j].y;
    }
    reduce_scatter<BLOCK, 32>(x, lane);
    if (lane % 2 == 0) sums[i * BLOCK + first] = x[0];
#pragma unroll
    for (int j = 0; j < BLOCK; ++j) x[j] = query.x * reach[j].x + query.y * reach[j].y;
    reduce_scatter<BLOCK, 32>(x, lane);
    if (lane % 2 == 0) sums[(BLOCK + i) * BLOCK + first] = x[0];
  }
}

// Two neighbouring numbers in two bf16 parts: {high, low}.
__device__ __forceinline__ uint2 split(float x, float y) {
  const uint32_t high = pack_bf16(x, y);
  return {high, pack_bf16(x - low_bf16(high), y - high_bf16(high))};
}

// L(I,I) [i][j] (strictly lower) in `l` as accumulators of the two column halves -> column lane % 16 of (I + L)^-1 in x.
// Forward substitution in fp32: no power of L is ever formed, so repeated keys (L all ones) are harmless.
__device__ __forceinline__ void invert(float (&columns)[BLOCK][BLOCK + 8], const float (&l)[2][4], const float *beta, float (&x)[BLOCK], int lane) {
  const int g = lane / 4, t = lane % 4;
  const float beta_i[2] = {beta[g], beta[g + 8]};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = g + (e / 2) * 8, j = half * 8 + 2 * t + (e & 1);
      columns[j][i] = i > j ? l[half][e] * beta_i[e / 2] : 0.f;
    }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < BLOCK; ++i) x[i] = i == (lane & 15) ? 1.f : 0.f;
#pragma unroll
  for (int j = 0; j < BLOCK - 1; ++j)  // x[j] is final: take it out of the rows below
#pragma unroll
    for (int four = (j + 1) / 4; four < BLOCK / 4; ++four) {
      const float4 m = *reinterpret_cast<const float4 *>(&columns[j][four * 4]);
      const float lij[4] = {m.x, m.y, m.z, m.w};
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (four * 4 + e > j) x[four * 4 + e] = fmaf(-lij[e], x[j], x[four * 4 + e]);
    }
  __syncwarp();
}

// acc [16,16] += x b^T with x and b in two parts each; `b` row-major.
__device__ __forceinline__ void mma_split(float (&acc)[2][4], const uint32_t (&high)[4], const uint32_t (&low)[4], const Split &b, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const uint2 b0 = *reinterpret_cast<const uint2 *>(&b[8 * n + g][2 * t]);
    const uint2 b1 = *reinterpret_cast<const uint2 *>(&b[8 * n + g][2 * t + 8]);
    mma(acc[n], high, b0.x, b1.x);
    mma(acc[n], high, b0.y, b1.y);
    mma(acc[n], low, b0.x, b1.x);
  }
}
__device__ __forceinline__ void to_operand(const float (&acc)[2][4], float sign, uint32_t (&high)[4], uint32_t (&low)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint2 x = split(sign * acc[i / 2][2 * (i & 1)], sign * acc[i / 2][2 * (i & 1) + 1]);
    high[i] = x.x, low[i] = x.y;
  }
}

// Blocks (I,J) below the diagonal: A tiles of rows I against b_far of rows J. L goes to l, M to m, without UNDO^2.
template <bool BETWEEN>
__device__ __forceinline__ void multiply(const PrepareShared &sm, int I, int J, const float *between, float (&l)[2][4], float (&m)[2][4], int lane) {
  const int t = lane % 4;
  const uint32_t a = shared_address(sm.a_k) + panel_offset(I * BLOCK + (lane & 15), lane / 16);
  const uint32_t b = shared_address(sm.b_far) + panel_offset(J * BLOCK + (lane & 7) + (lane & 16) / 2, (lane / 8) & 1);
#pragma unroll
  for (int step = 0; step < K / 16; ++step) {
    const uint32_t panel = step / 4 * Chunk::PANEL;
    uint32_t fk[4], fq[4], fb[4];
    ldmatrix(fk, (a ^ (step % 4 * 32)) + panel);
    ldmatrix(fq, (a ^ (step % 4 * 32)) + panel + Chunk::TILE);
    ldmatrix(fb, (b ^ (step % 4 * 32)) + panel);
    if constexpr (BETWEEN) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // channels 16 step + 2t.., 16 step + 8 + 2t..
        const float2 d = *reinterpret_cast<const float2 *>(between + 16 * step + 8 * half + 2 * t);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint32_t &x = fb[2 * n + half];
          x = pack_bf16(low_bf16(x) * d.x, high_bf16(x) * d.y);
        }
      }
    }
    mma(l[0], fk, fb[0], fb[1]);
    mma(l[1], fk, fb[2], fb[3]);
    mma(m[0], fq, fb[0], fb[1]);
    mma(m[1], fq, fb[2], fb[3]);
  }
}
__device__ __forceinline__ void store_pair(PrepareShared &sm, int I, int J, const float (&l)[2][4], const float (&m)[2][4], int lane) {
  constexpr float UNDO = Prepare::UNDO * Prepare::UNDO;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = g + 8 * half, r = I * BLOCK + i;
      const float beta = sm.beta[r] * UNDO;
      *reinterpret_cast<uint2 *>(&sm.l[I * (I - 1) / 2 + J][i][2 * t + 8 * n]) = split(l[n][2 * half] * beta, l[n][2 * half + 1] * beta);
      *reinterpret_cast<uint32_t *>(sm.m + panel_offset(r, 2 * J + n) + 4 * t) = pack_bf16(m[n][2 * half] * UNDO, m[n][2 * half + 1] * UNDO);
    }
}

// Copies T' or M to the image, 16 bytes a thread. Blocks above the diagonal that nobody reads are left out.
template <int THREADS>
__device__ __forceinline__ void store_panel(const unsigned char *from, char *to, bool low_parts, int thread) {
#pragma unroll
  for (int i = 0; i < Chunk::PANEL / 16; i += THREADS) {
    const int r = (i + thread) / 8, J = ((i + thread) % 8 ^ (r & 7)) / 2, I = r / BLOCK;
    if ((i + THREADS <= Chunk::PANEL / 16 || i + thread < Chunk::PANEL / 16) && (J <= I || (low_parts && J - I != 2)))
      reinterpret_cast<uint4 *>(to)[i + thread] = reinterpret_cast<const uint4 *>(from)[i + thread];
  }
}

template <int GATE, class GatePair>  // GatePair: float2 or uint32_t (packed bf16)
__global__ void __launch_bounds__(Prepare::THREADS, Prepare::BLOCKS_PER_SM)
    prepare(const __grid_constant__ kda_args a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  PrepareShared &sm = *reinterpret_cast<PrepareShared *>(shared);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid / 32;
  const int block = warp / 2, row0 = block * BLOCK, channel = 2 * (tid & 63);
  const int hv = blockIdx.x % a.heads_v;
  const uint32_t slot = blockIdx.x / a.heads_v;

  // Packed tokens behind the last sequence belong to nobody: their output is 0. Slot s looks after tokens [64 s, 64 s + 64).
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

  // ---- Raw rows. Rows past the end: k = q = 0, beta = 0, and a log decay of 0.
  const int h = hv / (a.heads_v / a.heads_qk);
  fetch<sizeof(GatePair) * 4>(a.g, chunk, hv, sm.raw_g);
  fetch<16>(a.k, chunk, h, sm.a_k);
  fetch<16>(a.q, chunk, h, sm.a_q);
  cp_async_commit();
  if (tid < C) sm.beta[tid] = tid < chunk.rows ? activate_beta(a.beta_kind, load(a.beta, row(a.beta, chunk.b, chunk.token + tid, hv))) : 0.f;
  const GateConstants gate = gate_constants<GATE>(a, hv, channel);
  cp_async_wait<0>();
  __syncthreads();

  // ---- Gates of this thread's two channels, the sums of each block, and the norms (warp by warp a block of k or q).
  const uint32_t word = (warp & 1) * Chunk::PANEL + panel_offset(row0, lane / 4) + (lane & 3) * 4;
  const auto at = [&](int i) { return (word ^ ((i & 7) << 4)) + i * 128; };  // of row row0 + i, in any tile
  float2 g[BLOCK];
  {
#pragma unroll
    for (int i = 0; i < BLOCK; ++i) {
      const unsigned char *from = sm.raw_g + (sizeof(GatePair) == 4 ? at(i) : (row0 + i) * K * 4 + channel * 4);
      g[i] = gate_shape<GATE>(widen_pair(*reinterpret_cast<const GatePair *>(from)), gate);
    }
    if (GATE != KDA_GATE_LOG && chunk.rows < C) {  // a padded zero logit would decay
#pragma unroll
      for (int i = 0; i < BLOCK; ++i)
        if (row0 + i >= chunk.rows) g[i] = float2{0.f, 0.f};
    }
    float2 sum{0.f, 0.f};
#pragma unroll
    for (int i = 0; i < BLOCK; ++i) add_decay(sum, g[i], gate);
    *reinterpret_cast<float2 *>(&sm.block_sum[block][channel]) = sum;
  }
  {
    const bool of_q = warp & 1;
    const float scale = of_q ? Prepare::OFFSET * a.scale : Prepare::OFFSET;
    float *norm = of_q ? sm.q_norm : sm.k_norm;
    if (a.l2norm) row_norms(of_q ? sm.a_q : sm.a_k, row0, scale, norm, lane);
    else if (lane < BLOCK) norm[row0 + lane] = scale;
  }
  __syncthreads();

  // ---- Factors of whole blocks.
  float2 before{0.f, 0.f}, after{0.f, 0.f}, own{0.f, 0.f};  // log2 decay: the blocks before this one, after it, itself
#pragma unroll
  for (int B = 0; B < BLOCKS; ++B) {
    const float2 sum = *reinterpret_cast<const float2 *>(&sm.block_sum[B][channel]);
    before.x += B < block ? sum.x : 0.f, before.y += B < block ? sum.y : 0.f;
    after.x += B > block ? sum.x : 0.f, after.y += B > block ? sum.y : 0.f;
    if (B == block) own = sum;
  }
  char *const out = chunk_at(a, slot, hv);
  if (block < 3) {  // e^(s_1) by block 1, e^(s_2) by block 2, e^(s_1 + s_2) by block 0
    const float2 s1 = *reinterpret_cast<const float2 *>(&sm.block_sum[1][channel]);
    const float2 s2 = *reinterpret_cast<const float2 *>(&sm.block_sum[2][channel]);
    const float2 s = block == 1 ? s1 : block == 2 ? s2 : float2{s1.x + s2.x, s1.y + s2.y};
    *reinterpret_cast<float2 *>(&sm.between[(block + 2) % 3][channel]) = float2{exp2_approx(s.x), exp2_approx(s.y)};
  } else {
    *reinterpret_cast<float2 *>(out + Chunk::DECAY + 4 * channel) =
        float2{exp2_approx(before.x + own.x), exp2_approx(before.y + own.y)};
  }
  const bool far_x = !(own.x >= Prepare::SPAN_LIMIT), far_y = !(own.y >= Prepare::SPAN_LIMIT);  // true for -inf
  const float2 inverse{far_x ? 0.f : exp2_approx(-own.x) * Prepare::UNDO, far_y ? 0.f : exp2_approx(-own.y) * Prepare::UNDO};

  // ---- Seven tiles. Forward over rows for everything with p, backward for everything with r.
  uint32_t k[BLOCK];  // the normalised keys, times OFFSET
  {
    const float2 state{exp2_approx(before.x) * Prepare::UNDO, exp2_approx(before.y) * Prepare::UNDO};
    float2 sum{0.f, 0.f};
#pragma unroll
    for (int i = 0; i < BLOCK; ++i) {
      const uint32_t raw_k = *reinterpret_cast<const uint32_t *>(sm.a_k + at(i));
      const uint32_t raw_q = *reinterpret_cast<const uint32_t *>(sm.a_q + at(i));
      const float kn = sm.k_norm[row0 + i], qn = sm.q_norm[row0 + i];
      add_decay(sum, g[i], gate);
      const float px = exp2_approx(sum.x), py = exp2_approx(sum.y);
      // The normalised key is rounded before any gate touches it. A weak gate then rounds back to the same key in every
      // tile and token, so that what is written along it can be erased along it; rounded apart, the differences pile up.
      k[i] = pack_bf16(low_bf16(raw_k) * kn, high_bf16(raw_k) * kn);
      const float kx = low_bf16(k[i]) * px, ky = high_bf16(k[i]) * py;
      const float qx = low_bf16(raw_q) * (qn * px), qy = high_bf16(raw_q) * (qn * py);
      *reinterpret_cast<uint32_t *>(sm.a_k + at(i)) = pack_bf16(kx, ky);
      *reinterpret_cast<uint32_t *>(sm.a_q + at(i)) = pack_bf16(qx, qy);
      *reinterpret_cast<uint32_t *>(out + Chunk::K_DECAYED + at(i)) = pack_bf16(kx * state.x, ky * state.y);
      *reinterpret_cast<uint32_t *>(out + Chunk::Q_DECAYED + at(i)) = pack_bf16(qx * state.x, qy * state.y);
    }
  }
  {
    const float2 state{exp2_approx(after.x) * Prepare::UNDO, exp2_approx(after.y) * Prepare::UNDO};
    float2 sum{0.f, 0.f};
#pragma unroll
    for (int i = BLOCK - 1; i >= 0; --i) {
      const float rx = exp2_approx(sum.x), ry = exp2_approx(sum.y);
      const float kx = low_bf16(k[i]), ky = high_bf16(k[i]);
      const float bx = kx * rx, by = ky * ry;
      *reinterpret_cast<uint32_t *>(sm.b_far + at(i)) = pack_bf16(bx, by);
      *reinterpret_cast<uint32_t *>(sm.b_near + at(i)) = pack_bf16(kx * (rx * inverse.x), ky * (ry * inverse.y));
      *reinterpret_cast<uint32_t *>(out + Chunk::K_REST + at(i)) = pack_bf16(bx * state.x, by * state.y);
      add_decay(sum, g[i], gate);
    }
  }
  const bool pairwise = __any_sync(ALL_LANES, far_x || far_y);
  if (lane == 0) sm.pairwise[warp] = pairwise;
  // What is summed pair by pair waits where T' and M will stand in the image: shared memory is full.
  float *const pairs = reinterpret_cast<float *>(out + Chunk::T);  // [warp][L, M][i][j]
  if (pairwise)
    sum_pairs<GATE, GatePair>(a, sm, slot, hv, row0, channel, far_x, far_y, pairs + warp * 2 * BLOCK * BLOCK, lane);
  __syncthreads();

  // ---- L and M. Warp I < 4: the block (I,I) of both, and its inverse. Warps 4 to 6: one block that lies further down, whose
  // keys decay through the blocks between. Warp 7: the three blocks next to the diagonal.
  const int t = lane % 4, row_g = lane / 4;
  if (warp < BLOCKS) {
    const int I = warp;
    float l[2][4] = {}, m[2][4] = {};
    const uint32_t a_rows = shared_address(sm.a_k) + panel_offset(I * BLOCK + (lane & 15), lane / 16);
    const uint32_t b_rows = shared_address(sm.b_near) + panel_offset(I * BLOCK + (lane & 7) + (lane & 16) / 2, (lane / 8) & 1);
#pragma unroll
    for (int step = 0; step < K / 16; ++step) {  // 16 channels are units 2 step, 2 step + 1: bits that the swizzle only XORs
      const uint32_t panel = step / 4 * Chunk::PANEL;
      uint32_t fk[4], fq[4], fb[4];
      ldmatrix(fk, (a_rows ^ (step % 4 * 32)) + panel);
      ldmatrix(fq, (a_rows ^ (step % 4 * 32)) + panel + Chunk::TILE);
      ldmatrix(fb, (b_rows ^ (step % 4 * 32)) + panel);
      mma(l[0], fk, fb[0], fb[1]);
      mma(l[1], fk, fb[2], fb[3]);
      mma(m[0], fq, fb[0], fb[1]);
      mma(m[1], fq, fb[2], fb[3]);
    }
    arrive<2, Prepare::THREADS>();  // this warp has read a_k, a_q and b_near
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        l[n][e] *= Prepare::UNDO, m[n][e] *= Prepare::UNDO;
        for (int w = 2 * I; w < 2 * I + 2; ++w)
          if (sm.pairwise[w]) {
            const float *sums = pairs + (w * 2 * BLOCK + row_g + e / 2 * 8) * BLOCK + 8 * n + 2 * t + (e & 1);
            l[n][e] += sums[0], m[n][e] += sums[BLOCK * BLOCK];
          }
      }
    float x[BLOCK];
    invert(sm.l_columns[I], l, sm.beta + I * BLOCK, x, lane);
    meet<1, BLOCKS * 32>();  // all four have read b_near: T' and M take its place
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = row_g + 8 * half, j = 8 * n + 2 * t;
        *reinterpret_cast<uint32_t *>(sm.m + panel_offset(I * BLOCK + i, 2 * I + n) + 4 * t) =
            pack_bf16(i >= j ? m[n][2 * half] : 0.f, i > j ? m[n][2 * half + 1] : 0.f);
      }
    // Lanes 0-15 write T(I,I), lanes 16-31 T'(I,I) and its low part. Even columns take row i, odd columns row i + 1, so
    // that each lane stores a whole register.
    const int column = lane & 15;
    const bool odd = lane & 1;
    const float factor = lane < 16 ? 1.f : sm.beta[I * BLOCK + column];
#pragma unroll
    for (int i = 0; i < BLOCK; i += 2) {
      const float mine = x[i] * factor, next = x[i + 1] * factor;
      const float other = __shfl_xor_sync(ALL_LANES, odd ? mine : next, 1);
      const uint2 parts = split(odd ? other : mine, odd ? next : other);
      const int r = i + odd;
      if (lane < 16) {
        *reinterpret_cast<uint2 *>(&sm.t_block[I][r][column & ~1]) = parts;
      } else {
        const int unit = column / 8, in_unit = (column & 6) * 2;
        *reinterpret_cast<uint32_t *>(sm.t + panel_offset(I * BLOCK + r, 2 * I + unit) + in_unit) = parts.x;
        *reinterpret_cast<uint32_t *>(sm.t + panel_offset(low_row(I) * BLOCK + r, 2 * low_column(I) + unit) + in_unit) = parts.y;
      }
    }
  } else if (warp < 7) {
    const int I = warp == 4 ? 2 : 3, J = warp == 5 ? 1 : 0;
    float l[2][4] = {}, m[2][4] = {};
    multiply<true>(sm, I, J, sm.between[warp - 4], l, m, lane);
    meet<2, Prepare::THREADS>();
    store_pair(sm, I, J, l, m, lane);
  } else {
    float l[3][2][4] = {}, m[3][2][4] = {};
#pragma unroll
    for (int J = 0; J < 3; ++J) multiply<false>(sm, J + 1, J, nullptr, l[J], m[J], lane);
    meet<2, Prepare::THREADS>();
#pragma unroll
    for (int J = 0; J < 3; ++J) store_pair(sm, J + 1, J, l[J], m[J], lane);
  }
  __syncthreads();

  // ---- Below the diagonal T(I,J) = -T(I,I) sum_{J<=M<I} L(I,M) T(M,J). Warp J walks down block column J, transposed: a
  // result of one product is the A operand of the next, in the same lanes.
  if (warp < BLOCKS - 1) {
    const int J = warp;
    uint32_t high[3][4], low[3][4];  // T'(M,J)^T for M = J, J + 1, J + 2
    const int in_block = (lane & 7) + (lane & 16) / 2, unit = (lane / 8) & 1;
    ldmatrix_trans(high[0], shared_address(sm.t) + panel_offset(J * BLOCK + in_block, 2 * J + unit));
    ldmatrix_trans(low[0], shared_address(sm.t) + panel_offset(low_row(J) * BLOCK + in_block, 2 * low_column(J) + unit));
#pragma unroll
    for (int d = 1; d < BLOCKS; ++d) {
      const int I = J + d;
      if (I < BLOCKS) {
        float sum[2][4] = {}, result[2][4] = {};
#pragma unroll
        for (int e = 0; e < d; ++e) mma_split(sum, high[e], low[e], sm.l[I * (I - 1) / 2 + J + e], lane);
        uint32_t sum_high[4], sum_low[4], last_high[4], last_low[4];
        to_operand(sum, -1.f, sum_high, sum_low);
        mma_split(result, sum_high, sum_low, sm.t_block[I], lane);
        to_operand(result, 1.f, last_high, last_low);
        stmatrix_trans(shared_address(sm.t) + panel_offset(I * BLOCK + in_block, 2 * J + unit), last_high);
        if (d < BLOCKS - 1)
#pragma unroll
          for (int i = 0; i < 4; ++i) high[d][i] = last_high[i], low[d][i] = last_low[i];
      }
    }
  } else {
    store_panel<Prepare::THREADS - 96>(sm.m, out + Chunk::M, false, tid - 96);
  }
  __syncthreads();
  store_panel<Prepare::THREADS>(sm.t, out + Chunk::T, true, tid);
}

}  // namespace kda::v4

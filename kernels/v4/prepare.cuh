// Kernel 1 of v4: everything about a chunk of 64 tokens that does not depend on the state. One block per (chunk, value
// head), all of them independent.
//
// The chunk is four blocks I of 16 tokens, and a decay over many tokens is a product of factors <= 1 that meet at the
// blocks' edges: with p_i the sum of log gates from the block's first token through i, r_j the sum after j to the block's
// last, and s_I the sum over block I,
//   e^(G_i) = e^(p_i) prod_{M<I} e^(s_M)                       e^(G_C - G_j) = e^(r_j) prod_{M>J} e^(s_M)
//   e^(G_i - G_j) = e^(p_i) e^(r_j) prod_{J<M<I} e^(s_M)       for blocks I > J
// No sum is ever subtracted from another, so -30 and -inf are as exact as -0.001. Only inside a block is a factor above 1 needed:
//   e^(G_i - G_j) = e^(p_i) e^(-p_j),   e^(-p_j) = e^(r_j) e^(-s_I) <= e^(16 * 5) = 2^115.4   for a gate of at least -5,
// and there the exponents of bf16, those of fp32, reach far enough on both sides: keys carry a factor 2^30 where e^(p_i)
// makes them small. A channel whose block decays by more (unbounded gates, -inf) leaves that tensor-core product (its
// factor e^(-p_j) is set to 0), and its pairs (j, i] of the block are summed one by one in fp32: exact again, and only
// there slower.
//
// Four tiles feed the tensor cores:
//   a_k = k e^p   a_q = scale q e^p   b_far = k e^r   b_near = k e^(-p)
// Each block's anchor is moved from its first token by the fraction f of log2 e^(G there), |f| <= 1/2: a_k and a_q carry 2^f,
// b_far of the block before 2^-f, and their product is the same. But now K~ and Q~ differ from a_k and a_q by whole powers of
// two, and so do keys on two sides of a block between: what is rounded to bf16 once is only scaled from there on, exactly,
// two numbers an instruction.
//
// A thread owns four channels of half a block's rows; a lane exchange makes its running sums those of the block. a_k and a_q
// stand where the raw rows of k and q landed, the other two where the raw gates did.
#pragma once
#include <type_traits>

#include "../common/warp.cuh"
#include "ptx.cuh"
#include "traits.cuh"

namespace kda::v4 {

constexpr float LOG2E = 1.4426950408889634f;

struct Prepare {
  static constexpr int THREADS = 256;  // 32 groups of 4 channels x 8 halves of blocks
  static constexpr int BLOCKS_PER_SM = 3;  // 80 registers a thread; one block loads while others compute
  static constexpr float SPAN_LIMIT = -116.f;  // log2 of a block's decay: 16 * 5 * log2 e = 115.4 stays on the tensor cores
  static constexpr float OFFSET = 0x1p30f;     // on k and q before their decay, taken out again of every result
  static constexpr float UNDO = 1 / OFFSET;
  static constexpr int PAIRS = BLOCKS * (BLOCKS - 1) / 2;  // blocks (I,J) below the diagonal
};
constexpr int HALF = BLOCK / 2;
static_assert(Prepare::THREADS == K / 4 * (C / HALF), "a thread owns 4 channels of one half of a block of rows");

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
    Split t_block[BLOCKS];                    // -T(I,I) = -(I + L(I,I))^-1
    float l_columns[BLOCKS][BLOCK][BLOCK + 8];  // before that, L(I,I) transposed
  };
  float block_sum[BLOCKS][K];  // log2 decay over each block
  uint16_t between[2][K];      // bf16: from a block's anchor to the next one's, blocks 1 and 2
  float q_norm[C];             // scale / |q|, times OFFSET
  uint2 k_norm[C];             // 1 / |k|, times OFFSET, in two bf16 parts, each twice
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
// Returns when all of this thread's cp_async have landed.
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// The compiler may keep nothing that it derived from x: eight addresses are cheaper found again than held in registers.
__device__ __forceinline__ void forget(uint32_t &x) { asm volatile("" : "+r"(x)); }
// Part of a block's warps meets: barrier `id` ends when `threads` of them have arrived or wait.
template <int id, int threads>
__device__ __forceinline__ void meet() { asm volatile("bar.sync %0, %1;" ::"n"(id), "n"(threads) : "memory"); }
template <int id, int threads>
__device__ __forceinline__ void arrive() { asm volatile("bar.arrive %0, %1;" ::"n"(id), "n"(threads) : "memory"); }

// ---- Gates. The log2 decay is rate * y with y = shape(raw gate): one fused multiply-add into a running sum.
template <int N>  // channels
struct GateConstants {
  float rate;   // of the decay, in powers of two
  float slope;  // sigmoid: 1 / (1 + 2^(slope x + bias))
  float bias[N];
};
template <int GATE, int N>
__device__ inline GateConstants<N> gate_constants(const kda_args &a, int hv, int channel) {
  GateConstants<N> c{LOG2E};
  if constexpr (GATE != KDA_GATE_LOG) {
    const float rate = a.A_log ? expf(a.A_log[hv]) : 1.f;
    c.rate = LOG2E * (GATE == KDA_GATE_SIGMOID ? a.lower_bound : -rate);
    c.slope = -rate * LOG2E;
    if (a.dt_bias)
#pragma unroll
      for (int e = 0; e < N; ++e) c.bias[e] = a.dt_bias[hv * K + channel + e] * (GATE == KDA_GATE_SIGMOID ? c.slope : 1.f);
  }
  return c;
}
// Their loads must not be left for later: they would start when the raw rows have landed.
__device__ __forceinline__ void settle(GateConstants<4> &c) {
  asm volatile("" : "+f"(c.rate), "+f"(c.bias[0]), "+f"(c.bias[1]), "+f"(c.bias[2]), "+f"(c.bias[3]));
}
template <int GATE, int N>
__device__ __forceinline__ void gate_shape(float (&y)[N], const GateConstants<N> &c) {
#pragma unroll
  for (int e = 0; e < N; ++e) {
    if constexpr (GATE == KDA_GATE_SIGMOID) y[e] = reciprocal(1.f + exp2_approx(fmaf(c.slope, y[e], c.bias[e])));
    if constexpr (GATE == KDA_GATE_SOFTPLUS) y[e] = softplus(y[e] + c.bias[e]);
  }
}
template <int N>
__device__ __forceinline__ void add_decay(float (&sum)[N], const float (&y)[N], const GateConstants<N> &c) {
#pragma unroll
  for (int e = 0; e < N; ++e) sum[e] = fmaf(y[e], c.rate, sum[e]);
}

// Neighbouring channels of a row of q, k or g as they stand in memory.
__device__ __forceinline__ void unpack(float (&x)[2], uint32_t from) { x[0] = low_bf16(from), x[1] = high_bf16(from); }
__device__ __forceinline__ void unpack(float (&x)[2], float2 from) { x[0] = from.x, x[1] = from.y; }
__device__ __forceinline__ void unpack(float (&x)[4], uint2 from) {
  x[0] = low_bf16(from.x), x[1] = high_bf16(from.x), x[2] = low_bf16(from.y), x[3] = high_bf16(from.y);
}
__device__ __forceinline__ void unpack(float (&x)[4], float4 from) { x[0] = from.x, x[1] = from.y, x[2] = from.z, x[3] = from.w; }
__device__ __forceinline__ uint2 pack_four(const float (&x)[4]) { return {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])}; }

// ---- The sequence that owns `slot`: the last n whose first slot is <= slot. All 32 lanes probe at once, so 1024 sequences
// take two rounds of loads and not ten.
__device__ inline int64_t sequence_of(const kda_args &a, uint32_t slot) {
  if (!a.cu_seqlens_bits) return a.sequences == 1 ? 0 : slot / static_cast<uint32_t>(chunks_of(a.tokens));
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

__device__ inline int head_of(const kda_args &a, int hv) {  // the q/k head that a value head belongs to
  return a.heads_qk == a.heads_v ? hv : hv / (a.heads_v / a.heads_qk);
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

// |x|^2 of 16 raw rows: the diagonal of X X^T, whose two operands are the same registers. The lanes with t = g / 2 receive
// those of rows g and g + 8.
__device__ __forceinline__ float2 row_squares(const unsigned char *tile, int row0, int lane) {
  const uint32_t at = shared_address(tile) + panel_offset(row0 + (lane & 15), lane / 16);
  float upper[4] = {}, lower[4] = {};
#pragma unroll
  for (int step = 0; step < K / 16; ++step) {
    uint32_t x[4];
    ldmatrix(x, (at ^ (step % 4 * 32)) + step / 4 * Chunk::PANEL);
    mma(upper, x, x[0], x[2]);
    mma(lower, x, x[1], x[3]);
  }
  return lane & 4 ? float2{upper[1], lower[3]} : float2{upper[0], lower[2]};
}

// A number in two bf16 parts, each twice, and the product of a bf16 pair with such a number: rounded once, up to 2^-17.
__device__ __forceinline__ uint2 in_parts(float x) {
  const uint32_t high = pack_bf16(x, x);
  const float low = x - low_bf16(high);
  return {high, pack_bf16(low, low)};
}
__device__ __forceinline__ uint32_t times_parts(uint32_t x, uint2 by) {
  uint32_t y;
  asm("{\n.reg .b32 small;\nmul.rn.bf16x2 small, %1, %3;\nfma.rn.bf16x2 %0, %1, %2, small;\n}" : "=r"(y) : "r"(x), "r"(by.x), "r"(by.y));
  return y;
}

__device__ __forceinline__ uint32_t times(uint32_t x, uint32_t y) {  // bf16 pairs
  uint32_t z;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(z) : "r"(x), "r"(y));
  return z;
}

// What a sum of log2 decays lacks to a whole number. Far down, where 2^sum is 0 to bf16 and fp32, none is taken out.
__device__ __forceinline__ float fraction(float sum) { return sum >= -256.f ? sum - rintf(sum) : 0.f; }

// The sum over blocks [first, last) of a thread's four channels.
__device__ __forceinline__ void log2_between(const PrepareShared &sm, int first, int last, int channel, float (&sum)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) sum[e] = 0.f;
#pragma unroll 1
  for (int B = first; B < last; ++B) {
    float s[4];
    unpack(s, *reinterpret_cast<const float4 *>(&sm.block_sum[B][channel]));
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += s[e];
  }
}

// What the tensor cores left out, for one block of rows and 64 channels by one warp: L [i][j], then M [i][j], to `sums`.
// `reach` is k_j decayed over (j, i], step by step, at most |k_j|. Rare: all is read again, so that it holds no registers
// anywhere else.
template <int GATE, class GatePair>
__device__ __forceinline__ void sum_pairs(const kda_args &a, const PrepareShared &sm, uint32_t slot, int hv, int row0, int channel,
                                          float *sums, int lane) {
  const Place chunk = place_of(a, slot);
  const int h = head_of(a, hv);
  const GateConstants<2> gate = gate_constants<GATE, 2>(a, hv, channel);
  const float *span = &sm.block_sum[row0 / BLOCK][channel];
  const float only_far[2] = {span[0] >= Prepare::SPAN_LIMIT ? 0.f : Prepare::UNDO, span[1] >= Prepare::SPAN_LIMIT ? 0.f : Prepare::UNDO};
  float2 reach[BLOCK] = {};
#pragma unroll 1
  for (int i = 0; i < BLOCK; ++i) {
    uint32_t raw_q = 0, raw_k = 0;
    float query[2], key[2], decay[2] = {};
    if (row0 + i < chunk.rows) {
      const int64_t token = chunk.token + row0 + i;
      raw_q = *reinterpret_cast<const uint32_t *>(static_cast<const uint16_t *>(a.q.data) + row(a.q, chunk.b, token, h) + channel);
      raw_k = *reinterpret_cast<const uint32_t *>(static_cast<const uint16_t *>(a.k.data) + row(a.k, chunk.b, token, h) + channel);
      unpack(decay, static_cast<const GatePair *>(a.g.data)[(row(a.g, chunk.b, token, hv) + channel) / 2]);
      gate_shape<GATE>(decay, gate);
    }
    const float q_norm = sm.q_norm[row0 + i] * Prepare::UNDO;
    unpack(query, raw_q);
    unpack(key, times_parts(raw_k, sm.k_norm[row0 + i]));
#pragma unroll
    for (int e = 0; e < 2; ++e) decay[e] = exp2_approx(decay[e] * gate.rate), query[e] *= q_norm, key[e] *= only_far[e];
    float x[BLOCK];
#pragma unroll
    for (int j = 0; j < BLOCK; ++j) {
      reach[j] = i == j ? float2{key[0], key[1]} : float2{reach[j].x * decay[0], reach[j].y * decay[1]};
      x[j] = key[0] * reach[j].x + key[1] * reach[j].y;
    }
    const int first = first_of<BLOCK, 32>(lane);
    reduce_scatter<BLOCK, 32>(x, lane);
    if (lane % 2 == 0) sums[i * BLOCK + first] = x[0];
#pragma unroll
    for (int j = 0; j < BLOCK; ++j) x[j] = query[0] * reach[j].x + query[1] * reach[j].y;
    reduce_scatter<BLOCK, 32>(x, lane);
    if (lane % 2 == 0) sums[(BLOCK + i) * BLOCK + first] = x[0];
  }
}

// Two neighbouring numbers in two bf16 parts: {high, low}.
__device__ __forceinline__ uint2 split(float x, float y) {
  const uint32_t high = pack_bf16(x, y);
  return {high, pack_bf16(x - low_bf16(high), y - high_bf16(high))};
}

// Column lane % 16 of (I + L)^-1, from L [16,16] by columns. Forward substitution in fp32: no power of L is ever formed,
// so repeated keys (L all ones) are harmless.
__device__ __forceinline__ void invert(const float (&columns)[BLOCK][BLOCK + 8], float (&x)[BLOCK], int lane) {
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
__device__ __forceinline__ void to_operand(const float (&acc)[2][4], uint32_t (&high)[4], uint32_t (&low)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint2 x = split(acc[i / 2][2 * (i & 1)], acc[i / 2][2 * (i & 1) + 1]);
    high[i] = x.x, low[i] = x.y;
  }
}

// Block (I,J) of L and of M: rows I of a_k and a_q against rows J of `from`, decayed through the blocks between.
template <int BETWEEN>  // the number of blocks between: I - J - 1, or 0
__device__ __forceinline__ void multiply(const PrepareShared &sm, int I, int J, const unsigned char *from, float (&l)[2][4], float (&m)[2][4], int lane) {
  const int t = lane % 4;
  // A: matrices (rows 0-7, unit 0), (8-15, 0), (0-7, 1), (8-15, 1); B: (columns 0-7, 0), (0-7, 1), (8-15, 0), (8-15, 1).
  const uint32_t a = shared_address(sm.a_k) + panel_offset(I * BLOCK + (lane & 15), lane / 16);
  const uint32_t b = shared_address(from) + panel_offset(J * BLOCK + (lane & 7) + (lane & 16) / 2, (lane / 8) & 1);
#pragma unroll
  for (int step = 0; step < K / 16; ++step) {  // 16 channels are units 2 step, 2 step + 1: bits that the swizzle only XORs
    const uint32_t panel = step / 4 * Chunk::PANEL;
    uint32_t fk[4], fq[4], fb[4];
    ldmatrix(fk, (a ^ (step % 4 * 32)) + panel);
    ldmatrix(fq, (a ^ (step % 4 * 32)) + panel + Chunk::TILE);
    ldmatrix(fb, (b ^ (step % 4 * 32)) + panel);
    if constexpr (BETWEEN > 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // channels 16 step + 2t.., 16 step + 8 + 2t..
        uint32_t d = *reinterpret_cast<const uint32_t *>(&sm.between[J][16 * step + 8 * half + 2 * t]);
        if constexpr (BETWEEN == 2) d = times(d, *reinterpret_cast<const uint32_t *>(&sm.between[J + 1][16 * step + 8 * half + 2 * t]));
        fb[half] = times(fb[half], d), fb[2 + half] = times(fb[2 + half], d);
      }
    }
    mma(l[0], fk, fb[0], fb[1]);
    mma(l[1], fk, fb[2], fb[3]);
    mma(m[0], fq, fb[0], fb[1]);
    mma(m[1], fq, fb[2], fb[3]);
  }
}
__device__ __forceinline__ void store_m(PrepareShared &sm, int I, int J, const float (&m)[2][4], float factor, int lane) {
  unsigned char *to = sm.m + lane % 4 * 4;
#pragma unroll
  for (int e = 0; e < 4; ++e)
    *reinterpret_cast<uint32_t *>(to + panel_offset(I * BLOCK + lane / 4 + e % 2 * 8, 2 * J + e / 2)) =
        pack_bf16(m[e / 2][e % 2 * 2] * factor, m[e / 2][e % 2 * 2 + 1] * factor);
}
__device__ __forceinline__ void store_l(PrepareShared &sm, int I, int J, const float (&l)[2][4], int lane) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int i = lane / 4 + e % 2 * 8;
    const float factor = sm.beta[I * BLOCK + i] * (Prepare::UNDO * Prepare::UNDO);
    *reinterpret_cast<uint2 *>(&sm.l[I * (I - 1) / 2 + J][i][2 * (lane % 4) + e / 2 * 8]) = split(l[e / 2][e % 2 * 2] * factor, l[e / 2][e % 2 * 2 + 1] * factor);
  }
}

// Copies T' or M to the image, 16 bytes a thread. Above the diagonal M is zero; of T' the low parts stand there, and what
// nobody reads is left out.
template <int THREADS>
__device__ __forceinline__ void store_panel(const unsigned char *from, char *to, bool low_parts, int thread) {
#pragma unroll
  for (int i = 0; i < Chunk::PANEL / 16; i += THREADS) {
    const int r = (i + thread) / 8, J = ((i + thread) % 8 ^ (r & 7)) / 2, I = r / BLOCK;
    if (i + THREADS > Chunk::PANEL / 16 && i + thread >= Chunk::PANEL / 16) break;
    if (low_parts && J - I == 2) continue;
    uint4 x = reinterpret_cast<const uint4 *>(from)[i + thread];
    if (!low_parts && J > I) x = uint4{0, 0, 0, 0};
    reinterpret_cast<uint4 *>(to)[i + thread] = x;
  }
}

template <class GatePair>
using FourGates = std::conditional_t<sizeof(GatePair) == 4, uint2, float4>;

template <int GATE, class GatePair>  // GatePair: float2 or uint32_t (packed bf16)
__global__ void __launch_bounds__(Prepare::THREADS, Prepare::BLOCKS_PER_SM)
    prepare(const __grid_constant__ kda_args a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  PrepareShared &sm = *reinterpret_cast<PrepareShared *>(shared);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid / 32;
  const int block = warp / 2, panel = warp & 1, row0 = block * BLOCK;       // a warp's rows, and its 64 channels
  const int first = lane / 16 * HALF, channel = 64 * panel + lane % 16 * 4;  // a thread's 8 rows there, and its 4 channels
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
  const int h = head_of(a, hv);
  GateConstants<4> gate = gate_constants<GATE, 4>(a, hv, channel);
  fetch<sizeof(GatePair) * 4>(a.g, chunk, hv, sm.raw_g);
  fetch<16>(a.k, chunk, h, sm.a_k);
  fetch<16>(a.q, chunk, h, sm.a_q);
  if (tid < C) sm.beta[tid] = tid < chunk.rows ? activate_beta(a.beta_kind, load(a.beta, row(a.beta, chunk.b, chunk.token + tid, hv))) : 0.f;
  if constexpr (GATE != KDA_GATE_LOG) settle(gate);
  cp_async_wait_all();
  __syncthreads();

  // ---- Gates of this thread's numbers, the sums of each block, and the norms (warp by warp a block of k or q).
  uint32_t word = panel * Chunk::PANEL + (row0 + first) * 128 + lane % 16 * 8;
  const auto at = [&](int i) { return (word ^ (i * 16)) + i * 128; };  // of row first + i in any tile: 8 bytes
  float g[HALF][4], own[4] = {};  // log2 decay over rate; over this half
  {
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      const int from = sizeof(GatePair) == 4 ? at(i) : (row0 + first + i) * K * 4 + channel * 4;
      unpack(g[i], *reinterpret_cast<const FourGates<GatePair> *>(sm.raw_g + from));
      gate_shape<GATE>(g[i], gate);
    }
    if (GATE != KDA_GATE_LOG && chunk.rows < C) {  // a padded zero logit would decay
#pragma unroll
      for (int i = 0; i < HALF; ++i)
        if (row0 + first + i >= chunk.rows) g[i][0] = g[i][1] = g[i][2] = g[i][3] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < HALF; ++i) add_decay(own, g[i], gate);
  }
  float other[4];  // the other half of the block
#pragma unroll
  for (int e = 0; e < 4; ++e) other[e] = __shfl_xor_sync(ALL_LANES, own[e], 16);
  if (first == 0)
    *reinterpret_cast<float4 *>(&sm.block_sum[block][channel]) = float4{own[0] + other[0], own[1] + other[1], own[2] + other[2], own[3] + other[3]};
  {
    const bool of_q = panel;
    float2 norm{1.f, 1.f};
    if (a.l2norm) {
      norm = row_squares(of_q ? sm.a_q : sm.a_k, row0, lane);
      norm = {rsqrt_approx(norm.x + kNormEps), rsqrt_approx(norm.y + kNormEps)};
    }
    const int r = row0 + lane / 4;
    if (lane % 4 == lane / 8) {
      if (of_q) sm.q_norm[r] = norm.x * (a.scale * Prepare::OFFSET), sm.q_norm[r + HALF] = norm.y * (a.scale * Prepare::OFFSET);
      else sm.k_norm[r] = in_parts(norm.x * Prepare::OFFSET), sm.k_norm[r + HALF] = in_parts(norm.y * Prepare::OFFSET);
    }
  }
  __syncthreads();

  // ---- Tiles. Backward over rows for everything with r, forward for everything with p.
  char *const out = chunk_at(a, slot, hv);
  {
    float state[4], inverse[4], between[4], sum[4], G[4];
    log2_between(sm, 0, block, channel, G);
    log2_between(sm, block + 1, BLOCKS, channel, state);
    bool far = false;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float s = own[e] + other[e], next = fraction(G[e] + s), span = s + fraction(G[e]) - next;
      const bool far_here = !(s >= Prepare::SPAN_LIMIT);  // true for -inf
      far |= far_here;
      between[e] = exp2_approx(span);
      inverse[e] = far_here ? 0.f : exp2_approx(-span) * Prepare::UNDO;
      state[e] = exp2_approx(state[e] + next) * Prepare::UNDO;
      sum[e] = (first ? 0.f : other[e]) - next;
      G[e] = exp2_approx(G[e] + s);
    }
    far = __any_sync(ALL_LANES, far);
    if (lane == 0) sm.pairwise[warp] = far;
    if (first == 0 && block == BLOCKS - 1) *reinterpret_cast<float4 *>(out + Chunk::DECAY + 4 * channel) = float4{G[0], G[1], G[2], G[3]};
    if (first == 0 && (block == 1 || block == 2)) *reinterpret_cast<uint2 *>(&sm.between[block - 1][channel]) = pack_four(between);
    forget(word);
#pragma unroll
    for (int i = HALF - 1; i >= 0; --i) {
      // The normalised key is rounded before any gate touches it. A weak gate then rounds back to the same key in every
      // tile and token, so that what is written along it can be erased along it; rounded apart, the differences pile up.
      uint2 *const key = reinterpret_cast<uint2 *>(sm.a_k + at(i));
      const uint2 norm = sm.k_norm[row0 + first + i];
      const uint2 k{times_parts(key->x, norm), times_parts(key->y, norm)};
      *key = k;
      float x[4], y[4];
      unpack(x, k);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] *= exp2_approx(sum[e]);
      *reinterpret_cast<uint2 *>(sm.b_far + at(i)) = pack_four(x);
#pragma unroll
      for (int e = 0; e < 4; ++e) y[e] = x[e] * inverse[e];
      *reinterpret_cast<uint2 *>(sm.b_near + at(i)) = pack_four(y);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] *= state[e];
      *reinterpret_cast<uint2 *>(out + at(i) + Chunk::K_REST) = pack_four(x);
      add_decay(sum, g[i], gate);
    }
  }
  {
    float state[4], sum[4];
    log2_between(sm, 0, block, channel, state);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sum[e] = (first ? other[e] : 0.f) + fraction(state[e]);
      state[e] = exp2_approx(rintf(state[e])) * Prepare::UNDO;
    }
    const uint2 power = pack_four(state);
    forget(word);
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      uint2 *const key = reinterpret_cast<uint2 *>(sm.a_k + at(i)), *const query = reinterpret_cast<uint2 *>(sm.a_q + at(i));
      const float norm = sm.q_norm[row0 + first + i];
      float x[4], y[4];
      unpack(x, *key);
      unpack(y, *query);
      add_decay(sum, g[i], gate);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float p = exp2_approx(sum[e]);
        x[e] *= p, y[e] *= norm * p;
      }
      const uint2 k = pack_four(x), q = pack_four(y);
      *key = k;
      *query = q;
      *reinterpret_cast<uint2 *>(out + at(i) + Chunk::K_DECAYED) = uint2{times(k.x, power.x), times(k.y, power.y)};
      *reinterpret_cast<uint2 *>(out + at(i) + Chunk::Q_DECAYED) = uint2{times(q.x, power.x), times(q.y, power.y)};
    }
  }
  // What is summed pair by pair waits where T' and M will stand in the image: shared memory is full.
  float *const pairs = reinterpret_cast<float *>(out + Chunk::T);  // [warp][L, M][i][j]
  __syncwarp();
  if (sm.pairwise[warp]) sum_pairs<GATE, GatePair>(a, sm, slot, hv, row0, 64 * panel + 2 * lane, pairs + warp * 2 * BLOCK * BLOCK, lane);
  __syncthreads();

  // ---- L and M: ten blocks on or below the diagonal. Warps 0 to 3 take (I,I). Then warps 0 and 1 invert two of them each,
  // and the others take one block below: 4, 5 and 6 those whose keys decay through blocks between, 2, 3 and 7 the neighbours.
  // Results replace operands: L(I,J) b_far, M and T' b_near. Barrier NEAR says that b_near has been read and L(I,I) is there,
  // barrier FAR that all operands have been read.
  constexpr int NEAR = 1, FAR = 2;
  float l[2][4] = {}, m[2][4] = {};
  if (warp < BLOCKS) {
    const int I = warp, t = lane % 4, row_g = lane / 4;
    multiply<0>(sm, I, I, sm.b_near, l, m, lane);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) l[n][e] *= Prepare::UNDO, m[n][e] *= Prepare::UNDO;
#pragma unroll 1
    for (int w = 2 * I; w < 2 * I + 2; ++w)
      if (sm.pairwise[w])
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float *sums = pairs + (w * 2 * BLOCK + row_g + e / 2 * 8) * BLOCK + 8 * n + 2 * t + (e & 1);
            l[n][e] += sums[0], m[n][e] += sums[BLOCK * BLOCK];
          }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = row_g + (e / 2) * 8, j = n * 8 + 2 * t + (e & 1);
        sm.l_columns[I][j][i] = i > j ? l[n][e] * sm.beta[I * BLOCK + i] : 0.f;
        if (i < j) m[n][e] = 0.f;
        l[n][e] = 0.f;
      }
    if (warp < 2) {
      meet<NEAR, 4 * 32>();
      arrive<FAR, Prepare::THREADS>();
      store_m(sm, I, I, m, 1.f, lane);
      // Lanes 0-15 have a block's columns, lanes 16-31 those of the next. Even columns take row i, odd columns row i + 1,
      // so that each lane stores a whole register.
      const int B = 2 * warp + lane / 16, column = lane & 15, unit = column / 8, in_unit = (column & 6) * 2;
      const bool odd = lane & 1;
      float x[BLOCK];
      invert(sm.l_columns[B], x, lane);
      const float beta_even = sm.beta[B * BLOCK + (column & ~1)], beta_odd = sm.beta[B * BLOCK + (column | 1)];
      __syncwarp();  // -T(B,B) takes the place of L(B,B)
#pragma unroll
      for (int i = 0; i < BLOCK; i += 2) {
        const float other = __shfl_xor_sync(ALL_LANES, odd ? x[i] : x[i + 1], 1);
        const float even_value = odd ? other : x[i], odd_value = odd ? x[i + 1] : other;
        const int r = i + odd;
        *reinterpret_cast<uint2 *>(&sm.t_block[B][r][column & ~1]) = split(-even_value, -odd_value);
        const uint2 parts = split(even_value * beta_even, odd_value * beta_odd);
        *reinterpret_cast<uint32_t *>(sm.t + panel_offset(B * BLOCK + r, 2 * B + unit) + in_unit) = parts.x;
        *reinterpret_cast<uint32_t *>(sm.t + panel_offset(low_row(B) * BLOCK + r, 2 * low_column(B) + unit) + in_unit) = parts.y;
      }
    } else {
      arrive<NEAR, 4 * 32>();
      float below_m[2][4] = {};
      multiply<0>(sm, I - 1, I - 2, sm.b_far, l, below_m, lane);
      meet<FAR, Prepare::THREADS>();
      store_m(sm, I, I, m, 1.f, lane);
      store_m(sm, I - 1, I - 2, below_m, Prepare::UNDO * Prepare::UNDO, lane);
      store_l(sm, I - 1, I - 2, l, lane);
    }
  } else {
    const int I = warp == 4 ? 2 : 3, J = warp == 7 ? 2 : warp == 5 ? 1 : 0;
    if (warp == 7) multiply<0>(sm, I, J, sm.b_far, l, m, lane);
    else if (warp == 6) multiply<2>(sm, I, J, sm.b_far, l, m, lane);
    else multiply<1>(sm, I, J, sm.b_far, l, m, lane);
    meet<FAR, Prepare::THREADS>();
    store_m(sm, I, J, m, Prepare::UNDO * Prepare::UNDO, lane);
    store_l(sm, I, J, l, lane);
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
        to_operand(sum, sum_high, sum_low);
        mma_split(result, sum_high, sum_low, sm.t_block[I], lane);
        to_operand(result, last_high, last_low);
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

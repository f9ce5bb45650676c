// Skeleton: one fused kernel, chunks of 64 tokens re-based every 16, one block a (sequence, head). Correct, not tuned.
//
// Question: what does a chunk of 64 tokens cost on one SM when nothing but q, k, v, g, beta and o touches HBM (1,282 bytes a token and head, where
// v4's two kernels move 3,344)?
// Method: 512 threads. Two warpgroups prepare chunk c + 1 (norm, gate, prefix sums in four blocks of 16 rows, factors, L and M by mma.sync, T' by
// forward substitution and block products) into one of two images in shared memory while two others, 64 value channels each, run the recurrence of
// chunk c on the other by wgmma, S^T in fp32 accumulators throughout. mbarriers hand images over and back. Checked against fp64
// first; then timed whole, with the recurrence alone (the images stay zero) and with preparation alone.
// Math (G from the chunk's start, p in-block prefix, s block sums, all in log2): K~ = k 2^G, Q~ = q 2^G, K- = k 2^(G_C - G); inside a
// diagonal block L, M are (k 2^p)(k 2^-p)^T, |p| <= 16 x 5 log2 e = 115; below it (k 2^p_i)(2^(s between)) (k 2^(s_J - p_j))^T, all factors <= 1.
// Prediction (cycles a chunk and SM): recurrence alone 2,048, the products of both warpgroups at full rate, 2 x ((8 + 8 + 4 + 4) x 32 + 4 x 64),
// which hide the chain of one (1,500). Preparation alone 4,500, its phases one after the other: norm and gate 1,300 and factors 1,400 (issue, at 2 of
// 4 a cycle), L and M 1,000 (123 KB of ldmatrix at 128 B a cycle), inverses 300 and block columns 500, beside which 800 of rebasing hide. Whole: the
// larger, plus waiting, 5,000: at 1.755 GHz 2.85 us, 0.37 ms at T = 8192, H = 96 (one wave on 96 SMs). Packed 1024 x 8: 768 blocks on 132 SMs are
// six waves of 16 chunks, 96 and not 128: 0.34 ms with six fills of the pipeline.
#include "../micro/hopper.cuh"
#include "problem.cuh"

using namespace lab;
using skeleton::Problem;

constexpr int C = 64, K = 128, V = 128, BLOCK = 16, BLOCKS = C / BLOCK, HALF_V = 64;
constexpr float LOG2E = 1.4426950408889634f;
constexpr int PANEL = 64 * 128, TILE = 2 * PANEL;  // a [64,128] tile of bf16: two swizzled panels of 64 channels
constexpr int PREPARERS = 256, THREADS = 512;
enum Barrier { PREPARE_BARRIER = 1, INVERSE_BARRIER = 2, VALUE_BARRIER = 3 };  // VALUE_BARRIER + warpgroup

struct Image {
  unsigned char k_decayed[TILE], q_decayed[TILE], k_rest[TILE], t[PANEL], m[PANEL];
  float decay[K];
  unsigned char padding[512];  // panels stand at multiples of 1024 bytes
};
constexpr int PITCH = BLOCK + 2;  // of a 16x16 block of L or T in fp32: even, so that pairs load at once
struct Shared {
  Image image[2];
  unsigned char raw_q[TILE], raw_k[TILE], raw_g[TILE];
  unsigned char k_inverse[TILE];          // k 2^-p
  unsigned char value[2][64 * 128];       // v, [64 tokens][64 channels], a panel for each warpgroup
  float l[10][BLOCK][PITCH];              // blocks (I,J), J <= I, of beta L; the diagonal ones become inverses
  float block_sum[BLOCKS][K];             // s, log2
  float norm[2][C], beta[C];
  alignas(8) uint64_t full[2], empty[2];
};
static_assert(sizeof(Image) == 66560 && sizeof(Shared) <= 232448, "the shared memory of a block");

__device__ __forceinline__ int tile_at(int r, int c) { return c / 64 * PANEL + panel_offset(r, c % 64 / 8) + c % 8 * 2; }
__host__ __device__ constexpr int block_number(int I, int J) { return I * (I + 1) / 2 + J; }

__device__ __forceinline__ uint32_t scaled(uint32_t x, float low, float high) { return pack_bf16(low_bf16(x) * low, high_bf16(x) * high); }

// ---------------------------------------------------------------- preparation

// Steps a pointer. Left to itself the compiler keeps an address for each unrolled row in registers, all the way around the loop.
template <class T>
__device__ __forceinline__ void advance(T *&p, int64_t elements) {
  p += elements;
  asm volatile("" : "+l"(p));
}

// 16-byte units of 64 rows of q, k, g into the raw tiles.
__device__ __forceinline__ void fetch_raw(const Problem &p, Shared &sm, int64_t row, int tid) {
  int64_t from = (row + int64_t(tid / 16) * p.heads) * K + tid % 16 * 8;
  asm volatile("" : "+l"(from));
  uint32_t to = shared_address(sm.raw_q + tile_at(tid / 16, tid % 16 * 8));
#pragma unroll
  for (int j = 0; j < 4; ++j) {  // 16 rows further the swizzle is the same
    cp_async(to, p.q + from);
    cp_async(to + TILE, p.k + from);
    cp_async(to + 2 * TILE, p.g + from);
    to += 16 * 128;
    from += int64_t(16) * p.heads * K;
    asm volatile("" : "+l"(from));
  }
  cp_async_commit();
}

// L and M of block (I,J): rows of k 2^p and q 2^p against rows of k 2^-p (diagonal) or k 2^(s_J - p).
__device__ __forceinline__ void block_of_l_and_m(Shared &sm, Image &image, int I, int J) {
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const int row_a = I * BLOCK + (lane & 15), row_b = J * BLOCK + (lane & 7) + (lane & 16) / 2;
  const unsigned char *b_tile = I == J ? sm.k_inverse : image.k_rest;
  float l[2][4] = {}, m[2][4] = {};
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    uint32_t k[4], q[4], b[4];
    const int panel = step / 4 * PANEL, unit = step % 4 * 2;
    ldmatrix(k, shared_address(image.k_decayed + panel + panel_offset(row_a, unit + lane / 16)));
    ldmatrix(q, shared_address(image.q_decayed + panel + panel_offset(row_a, unit + lane / 16)));
    ldmatrix(b, shared_address(b_tile + panel + panel_offset(row_b, unit + ((lane / 8) & 1))));
    if (I - J > 1) {  // what decays in the blocks between
      float2 d0{0.f, 0.f}, d1{0.f, 0.f};
      for (int M = J + 1; M < I; ++M) {
        const float2 s0 = *reinterpret_cast<const float2 *>(&sm.block_sum[M][16 * step + 2 * t]);
        const float2 s1 = *reinterpret_cast<const float2 *>(&sm.block_sum[M][16 * step + 2 * t + 8]);
        d0.x += s0.x, d0.y += s0.y, d1.x += s1.x, d1.y += s1.y;
      }
      d0 = {exp2_approx(d0.x), exp2_approx(d0.y)}, d1 = {exp2_approx(d1.x), exp2_approx(d1.y)};
      b[0] = scaled(b[0], d0.x, d0.y), b[2] = scaled(b[2], d0.x, d0.y);  // the right operand: one fragment for both products
      b[1] = scaled(b[1], d1.x, d1.y), b[3] = scaled(b[3], d1.x, d1.y);
    }
    mma(l[0], k, b[0], b[1]);
    mma(l[1], k, b[2], b[3]);
    mma(m[0], q, b[0], b[1]);
    mma(m[1], q, b[2], b[3]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int i = g + 8 * high, j = 8 * half + 2 * t;
      const float beta = sm.beta[I * BLOCK + i];
      const bool both = I > J || i > j + 1, first = I > J || i > j, at = I > J || i >= j;  // of L: (i,j+1), (i,j); of M: (i,j)
      *reinterpret_cast<float2 *>(&sm.l[block_number(I, J)][i][j]) =
          float2{first ? l[half][2 * high] * beta : 0.f, both ? l[half][2 * high + 1] * beta : 0.f};
      *reinterpret_cast<uint32_t *>(image.m + panel_offset(I * BLOCK + i, J * 2 + half) + 4 * t) =
          pack_bf16(at ? m[half][2 * high] : 0.f, first ? m[half][2 * high + 1] : 0.f);
    }
}

// The inverse of I + L(J,J) in place, a column a lane, by forward substitution; times beta, bf16, into T'.
__device__ __forceinline__ void invert_diagonal(Shared &sm, Image &image, int J) {
  const int column = threadIdx.x & 15;  // lanes 16-31 repeat lanes 0-15
  float(&l)[BLOCK][PITCH] = sm.l[block_number(J, J)];
  float x[BLOCK];
#pragma unroll
  for (int i = 0; i < BLOCK; ++i) {
    x[i] = i == column ? 1.f : 0.f;
#pragma unroll
    for (int m = 0; m < i; ++m) x[i] = fmaf(-l[i][m], x[m], x[i]);
  }
  __syncwarp();
  const float beta = sm.beta[J * BLOCK + column];
#pragma unroll
  for (int i = 0; i < BLOCK; ++i) {
    l[i][column] = x[i];
    *reinterpret_cast<__nv_bfloat16 *>(image.t + panel_offset(J * BLOCK + i, J * 2 + column / 8) + column % 8 * 2) = __float2bfloat16_rn(x[i] * beta);
  }
}

// A number as the sum of two bf16: products of such pairs keep 16 bits.
struct Split {
  uint32_t high[4], low[4];
  __device__ void set(int e, float x, float y) {
    high[e] = pack_bf16(x, y);
    low[e] = pack_bf16(x - low_bf16(high[e]), y - high_bf16(high[e]));
  }
};
// c [16,16] += a b^T with b a 16x16 block in shared memory, rows n, columns k.
__device__ __forceinline__ void split_product(float (&c)[2][4], const Split &a, const float (&b)[BLOCK][PITCH]) {
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int nt = 0; nt < 2; ++nt) {
    const float2 b0 = *reinterpret_cast<const float2 *>(&b[g + 8 * nt][2 * t]), b1 = *reinterpret_cast<const float2 *>(&b[g + 8 * nt][2 * t + 8]);
    const uint32_t h0 = pack_bf16(b0.x, b0.y), h1 = pack_bf16(b1.x, b1.y);
    mma(c[nt], a.high, h0, h1);
    mma(c[nt], a.low, h0, h1);
    mma(c[nt], a.high, pack_bf16(b0.x - low_bf16(h0), b0.y - high_bf16(h0)), pack_bf16(b1.x - low_bf16(h1), b1.y - high_bf16(h1)));
  }
}
// Block column J of T below the diagonal: T_IJ = -T_II sum_M L_IM T_MJ, all transposed so that a result is the next left operand.
__device__ __forceinline__ void inverse_column(Shared &sm, Image &image, int J) {
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const float(&d)[BLOCK][PITCH] = sm.l[block_number(J, J)];
  Split x[BLOCKS - 1];  // T_MJ^T, M = J ..
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int j = g + 8 * (e & 1), m = 2 * t + 8 * (e / 2);
    x[0].set(e, d[m][j], d[m + 1][j]);
  }
  const float beta[2] = {sm.beta[J * BLOCK + g], sm.beta[J * BLOCK + g + 8]};
#pragma unroll
  for (int step = 1; step < BLOCKS; ++step) {
    const int I = J + step;
    if (I < BLOCKS) {
      float y[2][4] = {}, z[2][4] = {};
#pragma unroll
      for (int m = 0; m < step; ++m) split_product(y, x[m], sm.l[block_number(I, J + m)]);
      Split w;
#pragma unroll
      for (int e = 0; e < 4; ++e) w.set(e, -y[e / 2][2 * (e & 1)], -y[e / 2][2 * (e & 1) + 1]);
      split_product(z, w, sm.l[block_number(I, I)]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float z0 = z[e / 2][2 * (e & 1)], z1 = z[e / 2][2 * (e & 1) + 1];  // row j = g + 8 (e & 1), columns i = 8 (e / 2) + 2t, + 1
        if (step < BLOCKS - 1) x[step].set(e, z0, z1);
        const uint32_t rows = movmatrix_trans(pack_bf16(z0 * beta[e & 1], z1 * beta[e & 1]));
        *reinterpret_cast<uint32_t *>(image.t + panel_offset(I * BLOCK + 8 * (e / 2) + g, J * 2 + (e & 1)) + 4 * t) = rows;
      }
    }
  }
}

// From the block's start to the chunk's: K~, Q~ by what decays before the block, K- by what decays after it; e^(G_C).
__device__ __forceinline__ void rebase(Shared &sm, Image &image, int tid) {
  const int unit = tid % 16, group = tid / 16;  // 8 channels; rows 2 group, 2 group + 1 of each block
  const auto move = [&](unsigned char *tile, int block, const float (&f)[8]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint4 *at = reinterpret_cast<uint4 *>(tile + tile_at(block * BLOCK + 2 * group + r, unit * 8));
      uint4 x = *at;
      x.x = scaled(x.x, f[0], f[1]), x.y = scaled(x.y, f[2], f[3]), x.z = scaled(x.z, f[4], f[5]), x.w = scaled(x.w, f[6], f[7]);
      *at = x;
    }
  };
  float sum[8] = {}, f[8];
#pragma unroll
  for (int I = 1; I < BLOCKS; ++I) {
#pragma unroll
    for (int e = 0; e < 8; ++e) f[e] = exp2_approx(sum[e] += sm.block_sum[I - 1][unit * 8 + e]);
    move(image.k_decayed, I, f);
    move(image.q_decayed, I, f);
  }
  if (group == 0)
#pragma unroll
    for (int e = 0; e < 8; ++e) image.decay[unit * 8 + e] = exp2_approx(sum[e] + sm.block_sum[BLOCKS - 1][unit * 8 + e]);
#pragma unroll
  for (int e = 0; e < 8; ++e) sum[e] = 0.f;
#pragma unroll
  for (int J = BLOCKS - 2; J >= 0; --J) {
#pragma unroll
    for (int e = 0; e < 8; ++e) f[e] = exp2_approx(sum[e] += sm.block_sum[J + 1][unit * 8 + e]);
    move(image.k_rest, J, f);
  }
}

// Where preparation spends its cycles, seen by one thread of the warps that invert and one of those that rebase.
enum Phase { RAW_ROWS, NORM_AND_GATE, FACTORS, L_AND_M, DIAGONAL, COLUMNS, REBASE, PHASES };
template <bool ON>
struct Stopwatch {
  long long *sums = nullptr, last = 0;
  __device__ void start(long long *to) {
    if (ON && blockIdx.x == 0 && threadIdx.x % 128 == 0 && threadIdx.x < PREPARERS) sums = to, last = clock64();
  }
  __device__ void stop(Phase phase) {
    if (!ON || !sums) return;
    const long long now = clock64();
    if (phase != REBASE && threadIdx.x == 0 || phase == REBASE && threadIdx.x == 128) sums[phase] += now - last;
    last = now;
  }
};

template <bool TIMED>
__device__ __forceinline__ void prepare_chunk(const Problem &p, Shared &sm, int c, int chunks, int64_t row, float logit, Stopwatch<TIMED> &watch) {
  const int tid = threadIdx.x, warp = tid / 32;
  Image &image = sm.image[c & 1];
  cp_async_wait<0>();
  named_barrier(PREPARE_BARRIER, PREPARERS);  // raw rows are there; whoever still worked on the last chunk's L is done
  watch.stop(RAW_ROWS);
  {
    const int r = tid / 2 % C, half = tid & 1;
    const unsigned char *tile = tid < 128 ? sm.raw_q : sm.raw_k;
    float sum = 0.f;
#pragma unroll
    for (int u = 0; u < 8; ++u) {
      const uint4 x = *reinterpret_cast<const uint4 *>(tile + half * PANEL + panel_offset(r, u));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t w = e == 0 ? x.x : e == 1 ? x.y : e == 2 ? x.z : x.w;
        sum = fmaf(low_bf16(w), low_bf16(w), fmaf(high_bf16(w), high_bf16(w), sum));
      }
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    if (half == 0) sm.norm[tid / 128][r] = rsqrt_approx(sum + 1e-6f) * (tid < 128 ? 0.08838834764831845f : 1.f);  // scale = 128^-1/2
    if (tid < C) sm.beta[tid] = reciprocal(1.f + exp2_approx(-LOG2E * logit));
  }
  const int channel = 2 * (tid & 63), block = tid / 64, row0 = block * BLOCK;
  float2 sums[BLOCK], sum{0.f, 0.f};
#pragma unroll
  for (int i = 0; i < BLOCK; ++i) {
    const uint32_t raw = *reinterpret_cast<const uint32_t *>(sm.raw_g + tile_at(row0 + i, channel));
    sum.x = fmaf(skeleton::LOWER_BOUND * LOG2E, reciprocal(1.f + exp2_approx(-LOG2E * low_bf16(raw))), sum.x);
    sum.y = fmaf(skeleton::LOWER_BOUND * LOG2E, reciprocal(1.f + exp2_approx(-LOG2E * high_bf16(raw))), sum.y);
    sums[i] = sum;
  }
  *reinterpret_cast<float2 *>(&sm.block_sum[block][channel]) = sum;
  named_barrier(PREPARE_BARRIER, PREPARERS);  // norms
  watch.stop(NORM_AND_GATE);
  if (c >= 2) barrier_wait(shared_address(sm.empty + (c & 1)), (c / 2 - 1) & 1);
  const float2 all{exp2_approx(sum.x), exp2_approx(sum.y)};
#pragma unroll
  for (int i = 0; i < BLOCK; ++i) {
    const int at = tile_at(row0 + i, channel);
    const uint32_t q = *reinterpret_cast<const uint32_t *>(sm.raw_q + at);
    uint32_t k = *reinterpret_cast<const uint32_t *>(sm.raw_k + at);
    const float nq = sm.norm[0][row0 + i], nk = sm.norm[1][row0 + i];
    k = pack_bf16(low_bf16(k) * nk, high_bf16(k) * nk);  // rounded before any gate touches it, as in v2
    const float2 up{exp2_approx(sums[i].x), exp2_approx(sums[i].y)};
    const float ix = low_bf16(k) * exp2_approx(-sums[i].x), iy = high_bf16(k) * exp2_approx(-sums[i].y);
    *reinterpret_cast<uint32_t *>(image.k_decayed + at) = pack_bf16(low_bf16(k) * up.x, high_bf16(k) * up.y);
    *reinterpret_cast<uint32_t *>(image.q_decayed + at) = pack_bf16(low_bf16(q) * nq * up.x, high_bf16(q) * nq * up.y);
    *reinterpret_cast<uint32_t *>(image.k_rest + at) = pack_bf16(ix * all.x, iy * all.y);
    *reinterpret_cast<uint32_t *>(sm.k_inverse + at) = pack_bf16(ix, iy);
  }
  named_barrier(PREPARE_BARRIER, PREPARERS);  // tiles and block sums; raw rows are used up
  watch.stop(FACTORS);
  if (c + 1 < chunks) fetch_raw(p, sm, row + int64_t(C) * p.heads, tid);
#pragma unroll 1
  for (int n = warp; n < 10; n += 8) {
    const int I = n < 1 ? 0 : n < 3 ? 1 : n < 6 ? 2 : 3;
    block_of_l_and_m(sm, image, I, n - block_number(I, 0));
  }
  named_barrier(PREPARE_BARRIER, PREPARERS);  // L; the tiles have been read
  watch.stop(L_AND_M);
  if (warp < 4) {
    invert_diagonal(sm, image, warp);
    named_barrier(INVERSE_BARRIER, 128);
    watch.stop(DIAGONAL);
    if (warp < 3) inverse_column(sm, image, warp);
    watch.stop(COLUMNS);
  } else {
    rebase(sm, image, tid - 128);
    watch.stop(REBASE);
  }
  async_fence();
  barrier_arrive(shared_address(sm.full + (c & 1)));
}

// ---------------------------------------------------------------- recurrence

// Row m of a warp's 16 is value channel value_of(m): after a transposition lane t holds four neighbouring channels of a token (as in v2).
__device__ __forceinline__ int value_of(int m) { return 4 * ((m & 7) / 2) + (m & 1) + 2 * (m / 8); }

__device__ __forceinline__ void fetch_values(const Problem &p, Shared &sm, int64_t row, int half, int tid) {
  const __nv_bfloat16 *from = p.v + (row + int64_t(tid / 8) * p.heads) * V + half * HALF_V + tid % 8 * 8;
  uint32_t to = shared_address(sm.value[half] + panel_offset(tid / 8, tid % 8));
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    cp_async(to, from);
    to += 16 * 128;
    advance(from, int64_t(16) * p.heads * V);
  }
  cp_async_commit();
}

// pack_bf16 for finite numbers, as another instruction: given the same one twice, ptxas keeps 32 registers of the first result.
__device__ __forceinline__ uint32_t pack_bf16_again(float low, float high) {
  uint32_t d;
  asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

template <int M>
__device__ __forceinline__ void round_to(uint32_t (&a)[M][4], const float (&d)[8 * M]) {
#pragma unroll
  for (int s = 0; s < M; ++s)
#pragma unroll
    for (int e = 0; e < 4; ++e) a[s][e] = pack_bf16(d[8 * s + 2 * e], d[8 * s + 2 * e + 1]);
}

__device__ __forceinline__ void recur_chunk(const Problem &p, Shared &sm, float (&s)[64], int c, int chunks, int64_t row, int half) {
  const int tid = threadIdx.x & 127, lane = tid & 31, warp = tid / 32, g = lane / 4, t = lane % 4;
  const Image &image = sm.image[c & 1];
  const uint32_t at = shared_address(&image);
  const uint64_t k_decayed = wgmma_descriptor(at), q_decayed = wgmma_descriptor(at + TILE), k_rest = wgmma_descriptor(at + 2 * TILE, PANEL);
  const uint64_t t_tile = wgmma_descriptor(at + 3 * TILE), m_tile = wgmma_descriptor(at + 3 * TILE + PANEL);
  barrier_wait(shared_address(sm.full + (c & 1)), c / 2 & 1);
  float r[32] = {};  // the first product does not read it, but ptxas would carry what is undefined around the loop
  wgmma_wait<0>();  // nothing is under way: only so does ptxas let S be touched beside the products below
  pin(s);
  {
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      uint32_t a[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) a[e] = pack_bf16(s[8 * step + 2 * e], s[8 * step + 2 * e + 1]);
      wgmma_fence();
      wgmma(r, a, k_decayed + step / 4 * (PANEL >> 4) + step % 4 * 2, step > 0);
    }
    wgmma_commit();
    cp_async_wait<0>();
    named_barrier(VALUE_BARRIER + half, 128);
    wgmma_wait<0>();
    pin(r);
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {  // token 8 j + g, four neighbouring channels
    const uint2 v = *reinterpret_cast<const uint2 *>(sm.value[half] + panel_offset(8 * j + g, 2 * warp + t / 2) + t % 2 * 8);
    const uint32_t low = movmatrix_trans(v.x), high = movmatrix_trans(v.y);
    r[4 * j] = low_bf16(low) - r[4 * j], r[4 * j + 1] = high_bf16(low) - r[4 * j + 1];
    r[4 * j + 2] = low_bf16(high) - r[4 * j + 2], r[4 * j + 3] = high_bf16(high) - r[4 * j + 3];
  }
  uint32_t f[4][4];
  round_to(f, r);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) wgmma(r, f[step], t_tile + step * 2, step > 0);
  wgmma_commit();
  named_barrier(VALUE_BARRIER + half, 128);  // v has been read
  if (c + 1 < chunks) fetch_values(p, sm, row + int64_t(C) * p.heads, half, tid);
  wgmma_wait<0>();
  pin(r);
  round_to(f, r);
  float o[32] = {};
  // Q~ S only now, its operand rounded once more: registers do not hold it beside U. The other warpgroup fills the gap.
#pragma unroll
  for (int panel = 0; panel < 2; ++panel) {
    uint32_t a[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int e = 0; e < 4; ++e) a[step][e] = pack_bf16_again(s[32 * panel + 8 * step + 2 * e], s[32 * panel + 8 * step + 2 * e + 1]);
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) wgmma(o, a[step], q_decayed + panel * (PANEL >> 4) + step * 2, panel + step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
  }
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const float2 d = *reinterpret_cast<const float2 *>(image.decay + 8 * j + 2 * t);
    s[4 * j] *= d.x, s[4 * j + 1] *= d.y, s[4 * j + 2] *= d.x, s[4 * j + 3] *= d.y;
  }
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) wgmma<1>(s, f[step], k_rest + step * (2048 >> 4));
#pragma unroll
  for (int step = 0; step < 4; ++step) wgmma(o, f[step], m_tile + step * 2);
  wgmma_commit();
  wgmma_wait<0>();
  pin(s);
  pin(o);
  barrier_arrive(shared_address(sm.empty + (c & 1)));
  __nv_bfloat16 *to = p.o + (row + int64_t(g) * p.heads) * V + half * HALF_V + warp * 16 + 4 * t;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const uint2 w{movmatrix_trans(pack_bf16(o[4 * j], o[4 * j + 1])), movmatrix_trans(pack_bf16(o[4 * j + 2], o[4 * j + 3]))};
    *reinterpret_cast<uint2 *>(to) = w;
    advance(to, int64_t(8) * p.heads * V);
  }
}

template <bool PREPARE, bool RECUR>
__global__ void __launch_bounds__(THREADS, 1) fused64(const Problem p, long long *clocks, long long *phases) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared &sm = *reinterpret_cast<Shared *>(raw);
  const int tid = threadIdx.x, head = blockIdx.x % p.heads, sequence = blockIdx.x / p.heads, chunks = p.tokens / C;
  int64_t row = int64_t(sequence) * p.tokens * p.heads + head;  // of q, k, v, g, o, counted in heads
  for (int i = tid; i < static_cast<int>(2 * sizeof(Image) / 16); i += THREADS) reinterpret_cast<uint4 *>(raw)[i] = uint4{0, 0, 0, 0};
  if (tid == 0) {
    for (int s = 0; s < 2; ++s) barrier_init(shared_address(sm.full + s), PREPARERS), barrier_init(shared_address(sm.empty + s), THREADS - PREPARERS);
    barrier_init_fence();
  }
  async_fence();
  __syncthreads();
  const long long begin = clock64();
  if (tid < PREPARERS) {
    fewer_registers<88>();
    Stopwatch<!RECUR> watch;
    watch.start(phases);
    if (PREPARE) fetch_raw(p, sm, row, tid);
    for (int c = 0; c < chunks; ++c, row += int64_t(C) * p.heads) {
      if (PREPARE) {
        const float logit = tid < C ? __bfloat162float(p.beta[row + int64_t(tid) * p.heads]) : 0.f;
        prepare_chunk(p, sm, c, chunks, row, logit, watch);
      } else {
        if (c >= 2) barrier_wait(shared_address(sm.empty + (c & 1)), (c / 2 - 1) & 1);
        barrier_arrive(shared_address(sm.full + (c & 1)));
      }
    }
  } else {
    more_registers<168>();
    const int half = tid / 128 - 2;
    if (RECUR) {
      float s[64];
#pragma unroll
      for (int i = 0; i < 64; ++i) s[i] = 0.f;
      fetch_values(p, sm, row, half, tid & 127);
      for (int c = 0; c < chunks; ++c, row += int64_t(C) * p.heads) recur_chunk(p, sm, s, c, chunks, row, half);
      const int lane = tid & 31, g = lane / 4, t = lane % 4, warp = tid / 32 & 3;
      float *state = p.state + (int64_t(sequence) * p.heads + head) * V * K + (half * HALF_V + warp * 16) * K;
#pragma unroll
      for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int high = 0; high < 2; ++high)
          *reinterpret_cast<float2 *>(state + value_of(g + 8 * high) * K + 8 * j + 2 * t) = float2{s[4 * j + 2 * high], s[4 * j + 2 * high + 1]};
    } else {
      for (int c = 0; c < chunks; ++c) {
        barrier_wait(shared_address(sm.full + (c & 1)), c / 2 & 1);
        barrier_arrive(shared_address(sm.empty + (c & 1)));
      }
    }
    if (clocks && tid == THREADS - 1) clocks[blockIdx.x] = clock64() - begin;
  }
}

template <bool PREPARE = true, bool RECUR = true>
void launch(const Problem &p, long long *clocks = nullptr, long long *phases = nullptr) {
  allow_shared(fused64<PREPARE, RECUR>, sizeof(Shared));
  fused64<PREPARE, RECUR><<<p.sequences * p.heads, THREADS, sizeof(Shared)>>>(p, clocks, phases);
}

int main() {
  skeleton::check_gates([](const Problem &p) { launch(p); }, 4e-3);
  const Problem p = skeleton::make(1, 8192, 96, -5.5f, 1);
  const int blocks = p.sequences * p.heads, chunks = p.tokens / C;
  auto each = [&](auto run) { return cycles(blocks, run) / chunks; };
  row("a chunk, recurrence alone", each([&](long long *c) { launch<false, true>(p, c); }), "cycles", 2048);
  row("a chunk, preparation alone", each([&](long long *c) { launch<true, false>(p, c); }), "cycles", 4500);
  long long *phases = device<long long>(PHASES);
  LAB_CHECK((launch<true, false>(p, nullptr, phases), cudaDeviceSynchronize()));
  const auto spent = host(phases, PHASES);
  const char *names[] = {"raw rows", "norm and gate", "factors", "L and M", "inverses of diagonal blocks", "block columns of T'", "rebase (beside the two above)"};
  const double predicted[] = {0, 1300, 1400, 1000, 300, 500, 800};
  for (int i = 0; i < PHASES; ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "preparation: %s", names[i]);
    row(name, double(spent[i]) / chunks, "cycles", predicted[i]);
  }
  row("a chunk, fused", each([&](long long *c) { launch(p, c); }), "cycles", 5000);
  row("8192-H96", milliseconds([&] { launch(p); }), "ms", 0.37);
  skeleton::release(p);
  const Problem packed = skeleton::make(8, 1024, 96, -5.5f, 1);
  row("1024x8-H96", milliseconds([&] { launch(packed); }), "ms", 0.34);
  skeleton::release(packed);
  const Problem few = skeleton::make(1, 8192, 16, -5.5f, 1);
  row("8192-H16", milliseconds([&] { launch(few); }), "ms", 0.36);
}

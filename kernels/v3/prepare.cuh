// Kernel 1 of v3: v2's arithmetic (v2/prepare.cuh says what the tiles are and why they are exact), its copies by TMA. Three
// boxes of 16 tokens arrive while the block looks up its constants; the three tiles of the image leave in one bulk copy
// while two warps still invert and multiply.
#pragma once
#include "../v2/prepare.cuh"
#include "pipeline.cuh"

namespace kda::v3 {

using v2::Prepare, v2::HALF;

// [16 tokens, one head, 128 channels] of q, k and g: boxes of tensor maps over (channel, head, token, batch).
struct Maps {
  CUtensorMap q, k, g;
};

// What arrives is read into registers before the tiles that it lies under are written.
struct PrepareShared : v2::PrepareShared {
  alignas(256) unsigned char image[3 * Chunk::TILE];  // K~, Q~, K-
  float decay[K], beta[C];
  uint64_t landed;

  __device__ unsigned char *raw_q() { return k_up; }
  __device__ unsigned char *raw_k() { return q_up; }
  __device__ unsigned char *raw_g() { return image; }  // up to 8 KB: fp32
};
static_assert(Prepare::BLOCKS_PER_SM * (sizeof(PrepareShared) + 1024) <= 228 * 1024, "shared memory of an SM");

template <int GATE, typename GatePair>  // GatePair: float2 or uint32_t (packed bf16)
__global__ void __launch_bounds__(Prepare::THREADS, Prepare::BLOCKS_PER_SM)
    prepare(const __grid_constant__ kda_args a, const __grid_constant__ Maps maps) {
  using v2::exp2_approx, v2::gate_pair, v2::high_bf16, v2::ldmatrix, v2::load_pair, v2::log2_decay, v2::low_bf16, v2::mma,
      v2::pack_bf16, v2::Place, v2::place_of, v2::rsqrt_approx, v2::tile_offset, v2::write_inverse;
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

  const Barrier landed{shared_address(&sm.landed)};
  if (tid == 0) {
    landed.init(1);
    fence_barrier_init();
    landed.arrive_expect_tx(C * K * (2 + 2 + sizeof(GatePair) / 2));
    const int token = static_cast<int>(chunk.token), b = static_cast<int>(chunk.b), head = hv / (a.heads_v / a.heads_qk);
    const auto load = [&](const CUtensorMap &map, int head, unsigned char *to) {
      cute::SM90_TMA_LOAD_4D::copy(&map, &sm.landed, static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST), to, 0, head, token, b);
    };
    load(maps.k, head, sm.raw_k());
    load(maps.g, hv, sm.raw_g());
    load(maps.q, head, sm.raw_q());
  }
  __syncthreads();  // the barrier exists

  if (tid < C) sm.beta[tid] = tid < chunk.rows ? activate_beta(a.beta_kind, load(a.beta, row(a.beta, chunk.b, chunk.token + tid, hv))) : 0.f;

  // ---- Rows half * 8 .. + 8 of two channels. Rows past the end are the next sequence's, or nobody's: k = q = 0 and a log
  // decay of 0 instead (a padded zero logit would decay).
  const int row0 = half * HALF;
  const v2::GateConstants gate = v2::gate_constants<GATE>(a, hv, channel);
  uint32_t q[HALF], k[HALF];  // bf16 pairs
  float2 g[HALF];             // log2 decay
  landed.wait(0);
#pragma unroll
  for (int i = 0; i < HALF; ++i) {
    const int at = (row0 + i) * K + channel;
    const bool valid = row0 + i < chunk.rows;
    q[i] = valid ? *reinterpret_cast<const uint32_t *>(sm.raw_q() + at * 2) : 0;
    k[i] = valid ? *reinterpret_cast<const uint32_t *>(sm.raw_k() + at * 2) : 0;
    g[i] = valid ? v2::gate_pair(*reinterpret_cast<const GatePair *>(sm.raw_g() + at * (sizeof(GatePair) / 2))) : float2{0.f, 0.f};
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

  // Decay over this thread's half of the rows, and over the other one.
  const float2 own = *reinterpret_cast<const float2 *>(&sm.half_sum[half][channel]);
  const float2 other = *reinterpret_cast<const float2 *>(&sm.half_sum[half ^ 1][channel]);
  const bool far_x = !(own.x >= Prepare::SPAN_LIMIT), far_y = !(own.y >= Prepare::SPAN_LIMIT);  // true for -inf
  const float2 inverse{far_x ? 0.f : exp2_approx(-own.x), far_y ? 0.f : exp2_approx(-own.y)};
  const float2 decay_other{exp2_approx(other.x), exp2_approx(other.y)};
  if (half)
    *reinterpret_cast<float2 *>(&sm.decay[channel]) = float2{exp2_approx(own.x) * decay_other.x, exp2_approx(own.y) * decay_other.y};

  // This thread's word in row i of a tile: the swizzle is an XOR with i * 16. All tiles start at multiples of 256 bytes.
  const uint32_t word = row0 * K * 2 + channel * 2;

  // ---- Six tiles. Forward over rows for everything with p, backward for everything with s.
  {
    const float2 up = half ? float2{1.f, 1.f} : inverse, state = half ? decay_other : float2{1.f, 1.f};
    float2 sum{0.f, 0.f};
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      sum.x += g[i].x;
      sum.y += g[i].y;
      const float px = exp2_approx(sum.x), py = exp2_approx(sum.y);
      const float kx = low_bf16(k[i]) * px, ky = high_bf16(k[i]) * py;
      const float qx = low_bf16(q[i]) * q_norm[i] * px, qy = high_bf16(q[i]) * q_norm[i] * py;
      const uint32_t at = (word ^ (i * 16)) + i * K * 2;
      *reinterpret_cast<uint32_t *>(sm.k_up + at) = pack_bf16(kx * up.x, ky * up.y);
      *reinterpret_cast<uint32_t *>(sm.q_up + at) = pack_bf16(qx * up.x, qy * up.y);
      *reinterpret_cast<uint32_t *>(sm.image + at + Chunk::K_DECAYED) = pack_bf16(kx * state.x, ky * state.y);
      *reinterpret_cast<uint32_t *>(sm.image + at + Chunk::Q_DECAYED) = pack_bf16(qx * state.x, qy * state.y);
    }
  }
  {
    const float2 down = half ? inverse : float2{1.f, 1.f}, state = half ? float2{1.f, 1.f} : decay_other;
    float2 sum{0.f, 0.f};
#pragma unroll
    for (int i = HALF - 1; i >= 0; --i) {
      const float kx = low_bf16(k[i]) * exp2_approx(sum.x);
      const float ky = high_bf16(k[i]) * exp2_approx(sum.y);
      const uint32_t at = (word ^ (i * 16)) + i * K * 2;
      *reinterpret_cast<uint32_t *>(sm.k_down + at) = pack_bf16(kx * down.x, ky * down.y);
      *reinterpret_cast<uint32_t *>(sm.image + at + Chunk::K_REST) = pack_bf16(kx * state.x, ky * state.y);
      sum.x += g[i].x;
      sum.y += g[i].y;
    }
  }
  // ---- Channels that decay too far for a factor: `reach` is k_j decayed over (j, i], step by step, at most |k_j|.
  const bool pairwise = __any_sync(ALL_LANES, far_x || far_y);
  if (lane == 0) sm.pairwise[warp] = pairwise;
  if (pairwise) {  // rare: all is found and read again, row by row, so that it holds no registers on the way here
    const Place again = place_of(a, slot);
    const int h = hv / (a.heads_v / a.heads_qk);
    const v2::GateConstants again_gate = v2::gate_constants<GATE>(a, hv, channel);
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
  // The warp that inverts does half as much again as the others. Warps of one number share a scheduler, so the part
  // moves from block to block.
  const int part = (warp + blockIdx.x + (blockIdx.x >> 7)) & 3;
  char *out = v2::chunk_at(a, slot, hv);
  if (part == 2 && lane == 0) {  // one bulk copy of all three tiles, while two other warps go on
    cute::tma_store_fence();  // what the block wrote, and this thread now knows of, becomes visible to the copy engine
    cute::SM90_BULK_COPY_S2G::copy(sm.image, out, 3 * Chunk::TILE);
    cute::SM90_BULK_COPY_S2G::copy(sm.decay, out + Chunk::DECAY, sizeof sm.decay);
    cute::tma_store_arrive();
    cute::tma_store_wait<0>();  // a block must not end while its shared memory is being read
  }
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
    write_inverse(sm, acc, sm.beta[lane & 15], out, lane);
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

}  // namespace kda::v3

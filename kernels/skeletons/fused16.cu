// Skeleton: one fused kernel, chunks of 16 tokens, one block a (sequence, head): v2's two kernels side by side in one block. Correct, not tuned.
//
// Question: is fusion enough, without chunks of 64? What do 64 tokens cost on one SM at 16 a step, beside fused64?
// Method: 512 threads. Two groups of four warps prepare the even and the odd chunks as v2's prepare does (bounded gates only), into a ring of four
// images in shared memory; eight warps of 16 value channels each run v2's recurrence by mma.sync on them, S^T in fp32 accumulators. mbarriers
// hand images over and back. Checked against fp64 first; then timed whole, with the recurrence alone and with preparation alone.
// Prediction (cycles for 64 tokens on an SM): v2's recurrence takes about 1,500 cycles a chunk when it waits for nothing but itself (65536-H16: 3.7 ms of
// 4,096 steps), 6,000 in all; v2's preparation issues 2,600 warp instructions a chunk, 10,400 in all, at 1.5 a cycle from 8 warps 7,000; both at once
// share the issue slots (6,000 x 8 warps' 0.9 a cycle + 10,400) / 2 a cycle: 8,000. At 1.755 GHz 4.6 us, 0.58 ms at T = 8192, H = 96.
#include "../micro/hopper.cuh"
#include "../v2/prepare.cuh"
#include "../v2/recur.cuh"
#include "problem.cuh"

using kda::v2::ALL_LANES;
using kda::v2::Chunk;
using kda::v2::HALF;
using kda::v2::PrepareShared;
using kda::v2::exp2_approx, kda::v2::high_bf16, kda::v2::ldmatrix, kda::v2::ldmatrix_trans, kda::v2::low_bf16, kda::v2::mma;
using kda::v2::movmatrix_trans, kda::v2::pack_bf16, kda::v2::reciprocal, kda::v2::rsqrt_approx, kda::v2::shared_address, kda::v2::tile_offset;
using skeleton::Problem;

constexpr int C = 16, K = 128, V = 128, STAGES = 4, GROUP = 128, PREPARERS = 2 * GROUP, THREADS = 512;
constexpr float LOG2E = 1.4426950408889634f;

struct alignas(1024) Scratch : PrepareShared {};  // each at a multiple of 256: the swizzle is an XOR of addresses
struct Shared {
  unsigned char image[STAGES][Chunk::BYTES];
  Scratch prepare[2];
  alignas(8) uint64_t full[STAGES], empty[STAGES];
};

// ---- Preparation: see v2/prepare.cuh for the two anchored halves; here without its path for gates below -7.5 a token.

struct Raw {
  uint32_t q[HALF], k[HALF], g[HALF];  // two channels of eight rows
  float beta;
};
__device__ __forceinline__ void load_raw(const Problem &p, Raw &raw, int64_t row, int tid) {
  int64_t at = (row + int64_t(tid / 64 * HALF) * p.heads) * K + 2 * (tid & 63);
#pragma unroll
  for (int i = 0; i < HALF; ++i) {
    raw.q[i] = *reinterpret_cast<const uint32_t *>(p.q + at);
    raw.k[i] = *reinterpret_cast<const uint32_t *>(p.k + at);
    raw.g[i] = *reinterpret_cast<const uint32_t *>(p.g + at);
    at += int64_t(p.heads) * K;
    asm volatile("" : "+l"(at));  // one running address, not eight
  }
  raw.beta = __bfloat162float(p.beta[row + int64_t(tid & 15) * p.heads]);
}
__device__ __forceinline__ float log2_decay(float x) { return skeleton::LOWER_BOUND * LOG2E * reciprocal(1.f + exp2_approx(-LOG2E * x)); }

__device__ __forceinline__ void prepare_chunk(PrepareShared &sm, unsigned char *image, uint32_t empty, int empty_parity, const Raw &raw, int group) {
  const int tid = threadIdx.x & (GROUP - 1), lane = tid & 31, warp = tid / 32, half = tid / 64, channel = 2 * (tid & 63), row0 = half * HALF;
  uint32_t k[HALF];
  float2 g[HALF], sum{0.f, 0.f};
  {
    float x[2 * HALF];
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      x[i] = low_bf16(raw.q[i]) * low_bf16(raw.q[i]) + high_bf16(raw.q[i]) * high_bf16(raw.q[i]);
      x[HALF + i] = low_bf16(raw.k[i]) * low_bf16(raw.k[i]) + high_bf16(raw.k[i]) * high_bf16(raw.k[i]);
      g[i] = {log2_decay(low_bf16(raw.g[i])), log2_decay(high_bf16(raw.g[i]))};
      sum.x += g[i].x, sum.y += g[i].y;
    }
    kda::reduce_scatter<2 * HALF, 32>(x, lane);
    if (lane % 2 == 0) sm.squares[warp][kda::first_of<2 * HALF, 32>(lane)] = x[0];
    *reinterpret_cast<float2 *>(&sm.half_sum[half][channel]) = sum;
  }
  lab::named_barrier(1 + group, GROUP);
  if (lane < 2 * HALF) {
    const float norm = rsqrt_approx(sm.squares[warp][lane] + sm.squares[warp ^ 1][lane] + kda::kNormEps);
    sm.norms[warp][lane] = lane < HALF ? norm * 0.08838834764831845f : norm;  // scale = 128^-1/2
  }
  __syncwarp();
  const float *q_norm = sm.norms[warp], *k_norm = sm.norms[warp] + HALF;
#pragma unroll
  for (int i = 0; i < HALF; ++i) k[i] = pack_bf16(low_bf16(raw.k[i]) * k_norm[i], high_bf16(raw.k[i]) * k_norm[i]);
  const float2 upper = *reinterpret_cast<const float2 *>(&sm.half_sum[0][channel]), lower = *reinterpret_cast<const float2 *>(&sm.half_sum[1][channel]);
  const float2 own = half ? lower : upper;
  const float2 inverse{exp2_approx(-own.x), exp2_approx(-own.y)};
  const float2 decay_upper{exp2_approx(upper.x), exp2_approx(upper.y)}, decay_lower{exp2_approx(lower.x), exp2_approx(lower.y)};
  const uint32_t word = row0 * K * 2 + channel * 2;
  lab::barrier_wait(empty, empty_parity);
  if (half)
    *reinterpret_cast<float2 *>(image + Chunk::DECAY + 4 * channel) = float2{decay_upper.x * decay_lower.x, decay_upper.y * decay_lower.y};
  {
    const float2 up = half ? float2{1.f, 1.f} : inverse, state = half ? decay_upper : float2{1.f, 1.f};
    float2 s{0.f, 0.f};
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      s.x += g[i].x, s.y += g[i].y;
      const float px = exp2_approx(s.x), py = exp2_approx(s.y);
      const float kx = low_bf16(k[i]) * px, ky = high_bf16(k[i]) * py;
      const float qx = low_bf16(raw.q[i]) * q_norm[i] * px, qy = high_bf16(raw.q[i]) * q_norm[i] * py;
      const uint32_t at = (word ^ (i * 16)) + i * K * 2;
      *reinterpret_cast<uint32_t *>(sm.k_up + at) = pack_bf16(kx * up.x, ky * up.y);
      *reinterpret_cast<uint32_t *>(sm.q_up + at) = pack_bf16(qx * up.x, qy * up.y);
      *reinterpret_cast<uint32_t *>(image + Chunk::K_DECAYED + at) = pack_bf16(kx * state.x, ky * state.y);
      *reinterpret_cast<uint32_t *>(image + Chunk::Q_DECAYED + at) = pack_bf16(qx * state.x, qy * state.y);
    }
  }
  {
    const float2 down = half ? inverse : float2{1.f, 1.f}, state = half ? float2{1.f, 1.f} : decay_lower;
    float2 s{0.f, 0.f};
#pragma unroll
    for (int i = HALF - 1; i >= 0; --i) {
      const float kx = low_bf16(k[i]) * exp2_approx(s.x), ky = high_bf16(k[i]) * exp2_approx(s.y);
      const uint32_t at = (word ^ (i * 16)) + i * K * 2;
      *reinterpret_cast<uint32_t *>(sm.k_down + at) = pack_bf16(kx * down.x, ky * down.y);
      *reinterpret_cast<uint32_t *>(image + Chunk::K_REST + at) = pack_bf16(kx * state.x, ky * state.y);
      s.x += g[i].x, s.y += g[i].y;
    }
  }
  lab::named_barrier(1 + group, GROUP);
  if (warp < 2) {  // warp 0: L = k_up k_down^T and T'; warp 1: M = q_up k_down^T
    const int t = lane % 4, row_g = lane / 4, row_a = lane & 15, row_b = (lane & 7) + (lane & 16) / 2;
    const uint32_t a_base = shared_address(warp == 0 ? sm.k_up : sm.q_up) + tile_offset(row_a, lane / 16);
    const uint32_t b_base = shared_address(sm.k_down) + tile_offset(row_b, (lane / 8) & 1);
    float acc[2][4] = {};
#pragma unroll
    for (int step = 0; step < K / 16; ++step) {
      uint32_t fa[4], fb[4];
      ldmatrix(fa, a_base ^ (step * 32));
      ldmatrix(fb, b_base ^ (step * 32));
      mma(acc[0], fa, fb[0], fb[1]);
      mma(acc[1], fa, fb[2], fb[3]);
    }
    if (warp == 0) {
      kda::v2::write_inverse(sm, acc, reciprocal(1.f + exp2_approx(-LOG2E * raw.beta)), reinterpret_cast<char *>(image), lane);
    } else {
      const auto masked = [&](int block, int high) {
        const int i = row_g + high * 8, j = block * 8 + 2 * t;
        return pack_bf16(i >= j ? acc[block][2 * high] : 0.f, i > j ? acc[block][2 * high + 1] : 0.f);
      };
      uint32_t *m = reinterpret_cast<uint32_t *>(image + Chunk::M) + 4 * lane;
      m[0] = masked(0, 0);
      *reinterpret_cast<uint2 *>(m + 2) = uint2{masked(0, 1), masked(1, 1)};
    }
  }
}

// ---- Recurrence: v2/recur.cuh with one tile of 16 value channels a warp, on images that are already here.

__device__ __forceinline__ void recur(const Problem &p, Shared &sm, int64_t row, int64_t state_at, int chunks) {
  const int lane = threadIdx.x & 31, warp = (threadIdx.x - PREPARERS) / 32, g = lane / 4, t = lane % 4, value0 = warp * 16;
  float s[K / 8][4] = {};
  const int at_rows = tile_offset((lane & 7) + (lane & 16) / 2, (lane / 8) & 1);
  const int at_columns = Chunk::K_REST + tile_offset(lane & 15, lane / 16);
  const __nv_bfloat16 *v_rows = p.v + (row + int64_t(g) * p.heads) * V + value0 + 4 * t;
  __nv_bfloat16 *o_rows = p.o + (row + int64_t(g) * p.heads) * V + value0 + 4 * t;
  const int step8 = 8 * p.heads * V;
  uint2 v_now[2], v_next[2];
  const auto load_v = [&](uint2(&v)[2], bool there) {
#pragma unroll
    for (int r = 0; r < 2; ++r) v[r] = there ? *reinterpret_cast<const uint2 *>(v_rows + r * step8) : uint2{0, 0};
    v_rows += 2 * step8;
  };
  load_v(v_now, true);
  load_v(v_next, chunks > 1);
  for (int c = 0; c < chunks; ++c) {
    const int at = c % STAGES;
    const unsigned char *image = sm.image[at];
    const uint32_t stage = shared_address(image);
    lab::barrier_wait(lab::shared_address(sm.full + at), c / STAGES & 1);
    const auto state_operand = [&](uint32_t(&to)[4], int step) {
      const float(&s0)[4] = s[2 * step], (&s1)[4] = s[2 * step + 1];
      to[0] = pack_bf16(s0[0], s0[1]), to[1] = pack_bf16(s0[2], s0[3]);
      to[2] = pack_bf16(s1[0], s1[1]), to[3] = pack_bf16(s1[2], s1[3]);
    };
    float r[2][4] = {}, o[2][4] = {};
#pragma unroll
    for (int step = 0; step < K / 16; ++step) {
      uint32_t b[4], fs[4];
      ldmatrix(b, stage + (at_rows ^ (step * 32)));
      state_operand(fs, step);
      mma(r[0], fs, b[0], b[1]);
      mma(r[1], fs, b[2], b[3]);
    }
    const auto read_out = [&](int first) {
#pragma unroll
      for (int step = first; step < first + 2; ++step) {
        uint32_t b[4], fs[4];
        ldmatrix(b, stage + Chunk::Q_DECAYED + (at_rows ^ (step * 32)));
        const float2 d0 = *reinterpret_cast<const float2 *>(image + Chunk::DECAY + (16 * step + 2 * t) * 4);
        const float2 d1 = *reinterpret_cast<const float2 *>(image + Chunk::DECAY + (16 * step + 8 + 2 * t) * 4);
        state_operand(fs, step);
        mma(o[0], fs, b[0], b[1]);
        mma(o[1], fs, b[2], b[3]);
        float(&s0)[4] = s[2 * step], (&s1)[4] = s[2 * step + 1];
        s0[0] *= d0.x, s0[1] *= d0.y, s0[2] *= d0.x, s0[3] *= d0.y;
        s1[0] *= d1.x, s1[1] *= d1.y, s1[2] *= d1.x, s1[3] *= d1.y;
      }
    };
    const uint4 bt = *reinterpret_cast<const uint4 *>(image + Chunk::T + lane * 16);
    const uint4 bm = *reinterpret_cast<const uint4 *>(image + Chunk::M + lane * 16);
    read_out(0);
    uint32_t u[4], fr[4];
    float product[2][4] = {};
#pragma unroll
    for (int nt = 0; nt < 2; ++nt) {
      const uint32_t low = movmatrix_trans(v_now[nt].x), high = movmatrix_trans(v_now[nt].y);
      fr[2 * nt] = pack_bf16(low_bf16(low) - r[nt][0], high_bf16(low) - r[nt][1]);
      fr[2 * nt + 1] = pack_bf16(low_bf16(high) - r[nt][2], high_bf16(high) - r[nt][3]);
    }
    mma(product[0], fr[0], fr[1], bt.x);
    mma(product[1], fr, bt.z, bt.w);
    mma(product[0], fr[0], fr[1], bt.y);
    mma(product[1], fr[2], fr[3], bm.y);
    read_out(2);
    read_out(4);
#pragma unroll
    for (int nt = 0; nt < 2; ++nt) {
      u[2 * nt] = pack_bf16(product[nt][0], product[nt][1]);
      u[2 * nt + 1] = pack_bf16(product[nt][2], product[nt][3]);
    }
    read_out(6);
#pragma unroll
    for (int r2 = 0; r2 < 2; ++r2) v_now[r2] = v_next[r2];
    load_v(v_next, c + 2 < chunks);
#pragma unroll
    for (int pair = 0; pair < K / 16; ++pair) {
      uint32_t b[4];
      ldmatrix_trans(b, stage + (at_columns ^ (pair * 32)));
      mma(s[2 * pair], u, b[0], b[1]);
      mma(s[2 * pair + 1], u, b[2], b[3]);
    }
    mma(o[0], u[0], u[1], bm.x);
    mma(o[1], u, bm.z, bm.w);
    lab::barrier_arrive(lab::shared_address(sm.empty + at));
#pragma unroll
    for (int nt = 0; nt < 2; ++nt)
      *reinterpret_cast<uint2 *>(o_rows + nt * step8) =
          uint2{movmatrix_trans(pack_bf16(o[nt][0], o[nt][1])), movmatrix_trans(pack_bf16(o[nt][2], o[nt][3]))};
    o_rows += 2 * step8;
  }
  float *state = p.state + state_at + value0 * K;
#pragma unroll
  for (int nt = 0; nt < K / 8; ++nt)
#pragma unroll
    for (int high = 0; high < 2; ++high)
      *reinterpret_cast<float2 *>(state + kda::v2::value_of(g + 8 * high) * K + 8 * nt + 2 * t) = float2{s[nt][2 * high], s[nt][2 * high + 1]};
}

template <bool PREPARE, bool RECUR>
__global__ void __launch_bounds__(THREADS, 1) fused16(const Problem p, long long *clocks) {
  extern __shared__ __align__(1024) unsigned char shared[];
  Shared &sm = *reinterpret_cast<Shared *>(shared);
  const int tid = threadIdx.x, head = blockIdx.x % p.heads, sequence = blockIdx.x / p.heads, chunks = p.tokens / C;
  const int64_t row = int64_t(sequence) * p.tokens * p.heads + head;
  for (int i = tid; i < STAGES * Chunk::BYTES / 16; i += THREADS) reinterpret_cast<uint4 *>(shared)[i] = uint4{0, 0, 0, 0};
  if (tid == 0) {
    for (int s = 0; s < STAGES; ++s) {
      lab::barrier_init(lab::shared_address(sm.full + s), GROUP);
      lab::barrier_init(lab::shared_address(sm.empty + s), THREADS - PREPARERS);
    }
    lab::barrier_init_fence();
  }
  __syncthreads();
  const long long begin = clock64();
  if (tid < PREPARERS) {
    const int group = tid / GROUP;
    Raw raw, next;
    if (PREPARE && group < chunks) load_raw(p, next, row + int64_t(group) * C * p.heads, tid & (GROUP - 1));
    for (int c = group; c < chunks; c += 2) {
      const int at = c % STAGES;
      const uint32_t empty = lab::shared_address(sm.empty + at);
      const int parity = (c / STAGES - 1) & 1;  // of the first round, 1: a fresh barrier counts its phase before the first as over
      if (PREPARE) {
        raw = next;
        if (c + 2 < chunks) load_raw(p, next, row + int64_t(c + 2) * C * p.heads, tid & (GROUP - 1));
        prepare_chunk(sm.prepare[group], sm.image[at], empty, parity, raw, group);
      } else {
        lab::barrier_wait(empty, parity);
      }
      lab::barrier_arrive(lab::shared_address(sm.full + at));
    }
    return;
  }
  if (RECUR) {
    recur(p, sm, row, (int64_t(sequence) * p.heads + head) * V * K, chunks);
  } else {
    for (int c = 0; c < chunks; ++c) {
      lab::barrier_wait(lab::shared_address(sm.full + c % STAGES), c / STAGES & 1);
      lab::barrier_arrive(lab::shared_address(sm.empty + c % STAGES));
    }
  }
  if (clocks && tid == THREADS - 1) clocks[blockIdx.x] = clock64() - begin;
}

template <bool PREPARE = true, bool RECUR = true>
void launch(const Problem &p, long long *clocks = nullptr) {
  lab::allow_shared(fused16<PREPARE, RECUR>, sizeof(Shared));
  fused16<PREPARE, RECUR><<<p.sequences * p.heads, THREADS, sizeof(Shared)>>>(p, clocks);
}

int main() {
  skeleton::check_gates([](const Problem &p) { launch(p); }, 4e-3);
  const Problem p = skeleton::make(1, 8192, 96, -5.5f, 1);
  const int blocks = p.sequences * p.heads, steps = p.tokens / 64;
  auto each = [&](auto run) { return lab::cycles(blocks, run) / steps; };
  lab::row("64 tokens, recurrence alone", each([&](long long *c) { launch<false, true>(p, c); }), "cycles", 6000);
  lab::row("64 tokens, preparation alone", each([&](long long *c) { launch<true, false>(p, c); }), "cycles", 7000);
  lab::row("64 tokens, fused", each([&](long long *c) { launch(p, c); }), "cycles", 8000);
  lab::row("8192-H96", lab::milliseconds([&] { launch(p); }), "ms", 0.58);
  skeleton::release(p);
  const Problem packed = skeleton::make(8, 1024, 96, -5.5f, 1);
  lab::row("1024x8-H96", lab::milliseconds([&] { launch(packed); }), "ms", 0.46);
  skeleton::release(packed);
  const Problem few = skeleton::make(1, 8192, 16, -5.5f, 1);
  lab::row("8192-H16", lab::milliseconds([&] { launch(few); }), "ms", 0.55);
}

// Kernel 2 of v2: the recurrence over chunks. One block per (sequence, value head, slab of value channels); everything is
// transposed, so that value channels are rows of products and no result ever changes lane before it is used again:
//     S^T [V,K] stays in fp32 accumulators from the first chunk to the last; rounded in pairs it is the A operand of
//     R^T = V^T - S^T K~^T        [V,C]
//     U^T = R^T T'^T              [V,C]
//     O^T = S^T Q~^T + U^T M^T    [V,C]
//     S^T = S^T diag(e^G_C) + U^T K-
// B operands (K~, Q~, K-, T', M) come from shared memory, where a ring of stages is filled ahead by 16-byte copies.
#pragma once
#include "traits.cuh"

namespace kda::v2 {

// WARPS warps of ROWS_OF_16 x 16 value channels each.
template <int WARPS_, int ROWS_OF_16_>
struct Recur {
  static constexpr int WARPS = WARPS_, ROWS_OF_16 = ROWS_OF_16_;
  static constexpr int THREADS = 32 * WARPS;
  static constexpr int WARP_ROWS = 16 * ROWS_OF_16;
  static constexpr int SLAB = WARPS * WARP_ROWS;  // value channels of a block
  static constexpr int SLABS = V / SLAB;
  static constexpr int STAGES = 4;  // 3 chunks under way: 41 KB a block, what a busy HBM's latency times its share asks for
  static constexpr int SHARED = STAGES * Chunk::BYTES;
  static constexpr int COPIES = Chunk::BYTES / 16;
  // State 64 registers for each 16 rows, operands and addresses about 90: two blocks of all V fit one SM. Smaller
  // blocks run where there are fewer of them than SMs.
  static constexpr int BLOCKS_PER_SM = SLAB == V ? 2 : 1;
  static_assert(V % SLAB == 0, "slabs must tile the value channels");
  static_assert(BLOCKS_PER_SM * SHARED <= 160 * 1024, "two whole blocks must fit the shared memory of sm_80");
};

// Row m of a 16-row tile is value channel value_of(m): after the transposition of O^T, lane t then holds four neighbouring
// channels of one token, so v is read and o written 8 bytes a lane, 32 a row.
__device__ __forceinline__ int value_of(int m) { return 4 * ((m & 7) / 2) + (m & 1) + 2 * (m / 8); }

// Longest sequence first: block rank -> sequence. A long sequence that starts last would run alone at the end.
// One warp ranks up to 32 sequences; more of them fill the machine evenly enough in their own order.
__device__ __forceinline__ int64_t ranked_sequence(const kda_args &a, int64_t rank) {
  if (!a.cu_seqlens_bits || a.sequences > 32) return rank;
  const int lane = threadIdx.x & 31, count = static_cast<int>(a.sequences);
  int64_t length = -1;
  if (lane < count) {
    const Span span = span_of(a, lane);
    length = span.end - span.begin;
  }
  int place = 0;
  for (int other = 0; other < count; ++other) {
    const int64_t theirs = __shfl_sync(ALL_LANES, length, other);
    place += theirs > length || (theirs == length && other < lane);
  }
  return __ffs(__ballot_sync(ALL_LANES, lane < count && place == rank)) - 1;
}

// ---- State in and out: f(x, channel, row of the warp) for each number of this lane.
template <class R, class F>
__device__ __forceinline__ void for_state(float (&s)[R::ROWS_OF_16][K / 8][4], F f) {
  const int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
#pragma unroll
  for (int mt = 0; mt < R::ROWS_OF_16; ++mt)
#pragma unroll
    for (int nt = 0; nt < K / 8; ++nt)
#pragma unroll
      for (int e = 0; e < 4; ++e) f(s[mt][nt][e], 8 * nt + 2 * t + (e & 1), 16 * mt + value_of(g + (e / 2) * 8));
}
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(uint16_t x) { return bf16_to_float(x); }
__device__ __forceinline__ void narrow(float &to, float x) { to = x; }
__device__ __forceinline__ void narrow(uint16_t &to, float x) { to = float_to_bf16(x); }

template <class R, class T>
__device__ __forceinline__ void load_state(float (&s)[R::ROWS_OF_16][K / 8][4], const T *from, bool v_first, int value0) {
  if (v_first)  // [V,K]
    for_state<R>(s, [&](float &x, int channel, int value) { x = widen(from[(value0 + value) * K + channel]); });
  else  // [K,V]
    for_state<R>(s, [&](float &x, int channel, int value) { x = widen(from[channel * V + value0 + value]); });
}
template <class R, class T>
__device__ __forceinline__ void store_state(float (&s)[R::ROWS_OF_16][K / 8][4], T *to, bool v_first, int value0) {
  if (v_first)
    for_state<R>(s, [&](float x, int channel, int value) { narrow(to[(value0 + value) * K + channel], x); });
  else
    for_state<R>(s, [&](float x, int channel, int value) { narrow(to[channel * V + value0 + value], x); });
}

template <class R>
__global__ void __launch_bounds__(R::THREADS, R::BLOCKS_PER_SM) recur(const __grid_constant__ kda_args a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int tid = threadIdx.x, lane = tid & 31, warp = tid / 32, g = lane / 4, t = lane % 4;
  const int slab = blockIdx.x % R::SLABS;
  const int hv = blockIdx.x / R::SLABS % a.heads_v;
  const int64_t n = ranked_sequence(a, blockIdx.x / R::SLABS / a.heads_v);
  const Span span = span_of(a, n);
  const int length = static_cast<int>(span.end - span.begin);
  const int chunks = (length + C - 1) / C;
  const int value0 = slab * R::SLAB + warp * R::WARP_ROWS;  // this warp's first value channel

  // ---- Ring of chunk images: copy chunk c into stage c % STAGES.
  const int64_t chunk_stride = static_cast<int64_t>(a.heads_v) * Chunk::BYTES;
  const char *source = chunk_at(a, first_slot(a, n), hv) + tid * 16;
  const uint32_t stages = shared_address(shared);
  auto fetch = [&](int c) {
    if (c < chunks) {
      const uint32_t stage = stages + c % R::STAGES * Chunk::BYTES + tid * 16;
#pragma unroll
      for (int i = 0; i < R::COPIES; i += R::THREADS)
        if (i + R::THREADS <= R::COPIES || i + tid < R::COPIES) cp_async(stage + i * 16, source + i * 16);
      source += chunk_stride;
    }
    cp_async_commit();  // an empty group too: the wait below counts groups, not chunks
  };
#pragma unroll
  for (int c = 0; c < R::STAGES - 1; ++c) fetch(c);

  // ---- v rows g and g + 8 of a chunk, value channels 4t..4t+3 of each 16-row tile; two chunks ahead, in registers.
  const uint16_t *v_rows = static_cast<const uint16_t *>(a.v.data) + row(a.v, span.b, span.begin + g, hv) + value0 + 4 * t;
  uint16_t *o_rows = static_cast<uint16_t *>(a.o.data) + row(a.o, span.b, span.begin + g, hv) + value0 + 4 * t;
  int left = length - g;  // tokens from this lane's first row of the chunk to the end
  const int v_token = static_cast<int>(a.v.stride_token), o_token = static_cast<int>(a.o.stride_token);
  using VRows = uint2[R::ROWS_OF_16][2];
  auto load_v = [&](VRows &v, int left_there) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int mt = 0; mt < R::ROWS_OF_16; ++mt)
        v[mt][r] = left_there > 8 * r ? *reinterpret_cast<const uint2 *>(v_rows + 8 * r * v_token + 16 * mt) : uint2{0, 0};
    v_rows += C * v_token;
  };
  VRows v_now, v_next;
  load_v(v_now, left);
  load_v(v_next, left - C);

  // ---- S^T: s[mt][nt] is rows 16 mt + (g, g + 8), channels 8 nt + (2t, 2t + 1).
  float s[R::ROWS_OF_16][K / 8][4];
  const int64_t state = (n * a.heads_v + hv) * (K * V);
  if (!a.initial_state)
    for_state<R>(s, [&](float &x, int, int) { x = 0.f; });
  else if (a.state_dtype == KDA_BF16)
    load_state<R>(s, static_cast<const uint16_t *>(a.initial_state) + state, a.state_v_first, value0);
  else
    load_state<R>(s, static_cast<const float *>(a.initial_state) + state, a.state_v_first, value0);

  // Where this lane points ldmatrix. K~, Q~: matrices (tokens 0-7, unit 0), (0-7, 1), (8-15, 0), (8-15, 1), B[k = channel][n = token].
  // K-: (tokens 0-7, unit 0), (8-15, 0), (0-7, 1), (8-15, 1), transposed: B[k = token][n = channel].
  const int at_rows = tile_offset((lane & 7) + (lane & 16) / 2, (lane / 8) & 1);
  const int at_columns = Chunk::K_REST + tile_offset(lane & 15, lane / 16);

  for (int c = 0; c < chunks; ++c) {
    cp_async_wait<R::STAGES - 2>();
    __syncthreads();             // chunk c has landed for every thread, and stage (c - 1) % STAGES is free
    fetch(c + R::STAGES - 1);
    const int stage_offset = c % R::STAGES * Chunk::BYTES;
    const uint32_t stage = stages + stage_offset;
    const unsigned char *image = shared + stage_offset;

    // ---- S^T K~^T, 16 channels at a time: all that the serial chain R -> U -> S waits for.
    const auto state_operand = [&](uint32_t (&to)[4], int mt, int step) {
      const float(&s0)[4] = s[mt][2 * step], (&s1)[4] = s[mt][2 * step + 1];
      to[0] = pack_bf16(s0[0], s0[1]), to[1] = pack_bf16(s0[2], s0[3]);
      to[2] = pack_bf16(s1[0], s1[1]), to[3] = pack_bf16(s1[2], s1[3]);
    };
    float r[R::ROWS_OF_16][2][4] = {}, o[R::ROWS_OF_16][2][4] = {};
#pragma unroll
    for (int step = 0; step < K / 16; ++step) {
      uint32_t b[4];
      ldmatrix(b, (stage + at_rows) ^ (step * 32));
#pragma unroll
      for (int mt = 0; mt < R::ROWS_OF_16; ++mt) {
        uint32_t fs[4];
        state_operand(fs, mt, step);
        mma(r[mt][0], fs, b[0], b[1]);
        mma(r[mt][1], fs, b[2], b[3]);
      }
    }
    // S^T Q~^T and the decay, two steps of it in each gap of the chain; the operand is rounded again, from the same fp32 state.
    const auto read_out = [&](int first) {
#pragma unroll
      for (int step = first; step < first + 2; ++step) {
        uint32_t b[4];
        ldmatrix(b, ((stage + at_rows) ^ (step * 32)) + Chunk::Q_DECAYED);
        const float2 d0 = *reinterpret_cast<const float2 *>(image + Chunk::DECAY + (16 * step + 2 * t) * 4);
        const float2 d1 = *reinterpret_cast<const float2 *>(image + Chunk::DECAY + (16 * step + 8 + 2 * t) * 4);
#pragma unroll
        for (int mt = 0; mt < R::ROWS_OF_16; ++mt) {
          uint32_t fs[4];
          state_operand(fs, mt, step);
          mma(o[mt][0], fs, b[0], b[1]);
          mma(o[mt][1], fs, b[2], b[3]);
          float(&s0)[4] = s[mt][2 * step], (&s1)[4] = s[mt][2 * step + 1];
          s0[0] *= d0.x, s0[1] *= d0.y, s0[2] *= d0.x, s0[3] *= d0.y;
          s1[0] *= d1.x, s1[1] *= d1.y, s1[2] *= d1.x, s1[3] *= d1.y;
        }
      }
    };

    // ---- R^T = V^T - S^T K~^T, U^T = R^T T'^T
    const uint4 bt = *reinterpret_cast<const uint4 *>(image + Chunk::T + lane * 16);
    const uint4 bm = *reinterpret_cast<const uint4 *>(image + Chunk::M + lane * 16);
    read_out(0);
    uint32_t u[R::ROWS_OF_16][4];
    float product[R::ROWS_OF_16][2][4] = {};
#pragma unroll
    for (int mt = 0; mt < R::ROWS_OF_16; ++mt) {
      uint32_t fr[4];
#pragma unroll
      for (int nt = 0; nt < 2; ++nt) {  // tokens 8 nt ..
        const uint32_t low = movmatrix_trans(v_now[mt][nt].x), high = movmatrix_trans(v_now[mt][nt].y);
        fr[2 * nt] = pack_bf16(low_bf16(low) - r[mt][nt][0], high_bf16(low) - r[mt][nt][1]);
        fr[2 * nt + 1] = pack_bf16(low_bf16(high) - r[mt][nt][2], high_bf16(high) - r[mt][nt][3]);
      }
      mma(product[mt][0], fr[0], fr[1], bt.x);
      mma(product[mt][1], fr, bt.z, bt.w);
      mma(product[mt][0], fr[0], fr[1], bt.y);
      mma(product[mt][1], fr[2], fr[3], bm.y);  // the low part of T'(1,1)
    }
    read_out(2);
    read_out(4);
#pragma unroll
    for (int mt = 0; mt < R::ROWS_OF_16; ++mt)
#pragma unroll
      for (int nt = 0; nt < 2; ++nt) {
        u[mt][2 * nt] = pack_bf16(product[mt][nt][0], product[mt][nt][1]);
        u[mt][2 * nt + 1] = pack_bf16(product[mt][nt][2], product[mt][nt][3]);
      }
    read_out(6);
    // v of the chunk after next: under way for a whole chunk before it is due.
#pragma unroll
    for (int mt = 0; mt < R::ROWS_OF_16; ++mt)
#pragma unroll
      for (int nt = 0; nt < 2; ++nt) v_now[mt][nt] = v_next[mt][nt];
    load_v(v_next, left - 2 * C);

    // ---- S^T += U^T K-
#pragma unroll
    for (int pair = 0; pair < K / 16; ++pair) {
      uint32_t b[4];
      ldmatrix_trans(b, (stage + at_columns) ^ (pair * 32));
#pragma unroll
      for (int mt = 0; mt < R::ROWS_OF_16; ++mt) {
        mma(s[mt][2 * pair], u[mt], b[0], b[1]);
        mma(s[mt][2 * pair + 1], u[mt], b[2], b[3]);
      }
    }

    // ---- O^T += U^T M^T, and out: token 8 nt + g, value channels 4t..4t+3
#pragma unroll
    for (int mt = 0; mt < R::ROWS_OF_16; ++mt) {
      mma(o[mt][0], u[mt][0], u[mt][1], bm.x);
      mma(o[mt][1], u[mt], bm.z, bm.w);
    }
#pragma unroll
    for (int nt = 0; nt < 2; ++nt)
#pragma unroll
      for (int mt = 0; mt < R::ROWS_OF_16; ++mt) {
        const uint2 w{movmatrix_trans(pack_bf16(o[mt][nt][0], o[mt][nt][1])),
                      movmatrix_trans(pack_bf16(o[mt][nt][2], o[mt][nt][3]))};
        if (left > 8 * nt) *reinterpret_cast<uint2 *>(o_rows + 8 * nt * o_token + 16 * mt) = w;
      }
    o_rows += C * o_token;
    left -= C;
  }

  if (!a.final_state) return;
  if (a.state_dtype == KDA_BF16)
    store_state<R>(s, static_cast<uint16_t *>(a.final_state) + state, a.state_v_first, value0);
  else
    store_state<R>(s, static_cast<float *>(a.final_state) + state, a.state_v_first, value0);
}

}  // namespace kda::v2

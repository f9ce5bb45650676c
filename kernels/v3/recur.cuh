// Kernel 2 of v3: v2's recurrence, transposed as there, with its copies in the hands of two warps of their own.
//
//   load    waits until a stage is empty, promises its bytes, starts one bulk copy of the chunk's image and a box of V
//   math    waits until the stage is full; leaves O where V was; says that it is done with the stage
//   store   waits until all of them are, stores the box of O, says that the stage is empty when the copy engine has read it
//
// No barrier holds the math warps together: each waits for its operands alone, and may run a chunk ahead of the others.
//
// The serial chain is S -> S^T K~^T -> R -> U -> S. v2 goes through all of S three times a chunk: to multiply it with K~,
// then with Q~, then to add U^T K-. Here the three are one pass over S, with the K~ and Q~ of the chunk that comes next:
//     for 16 channels at a time:   S^T += U^T K-(c)     r += S^T K~(c+1)^T     o += S^T Q~(c+1)^T     S^T <- S^T diag(e^G_C(c+1))
// Each slice of S is rounded once instead of twice, and multiplied while the next one is still being added to; between two
// passes stand only R and U.
#pragma once
#include "../common/trace.cuh"
#include "pipeline.cuh"

namespace kda::v3 {

// What a block works on, and each of its warps must know.
struct Walk {
  int64_t b, n, begin;  // batch row, sequence, first token
  int hv, slab, length;
};

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

template <class R>
__device__ __forceinline__ Walk walk_of(const kda_args &a) {
  const int slab = blockIdx.x % R::SLABS, hv = blockIdx.x / R::SLABS % a.heads_v;
  const int64_t n = ranked_sequence(a, blockIdx.x / R::SLABS / a.heads_v);
  const Span span = span_of(a, n);
  const int length = static_cast<int>(span.end - span.begin);
  return {span.b, n, span.begin, hv, slab, length};
}

// ---- The warp that loads.
template <class R>
__device__ __forceinline__ void load_chunks(const kda_args &a, const CUtensorMap &map, typename R::Shared &sm, const Walk &w) {
  const int lane = threadIdx.x & 31;
  const int64_t chunk_stride = static_cast<int64_t>(a.heads_v) * Chunk::BYTES;
  const char *image = v2::chunk_at(a, v2::first_slot(a, w.n), w.hv);
  Turn<R::STAGES> at;
  KDA_TRACE_WARP(trace::LOAD_WARP);
  for (int done = 0; done < w.length; done += C) {
    KDA_TRACE_STEP(done / C);
    const Barrier full{shared_address(&sm.full[at.slot])}, empty{shared_address(&sm.empty[at.slot])};
    uint16_t *v = sm.v[at.slot];
    empty.wait(at.parity ^ 1);  // a fresh barrier has "completed" parity 1: the first turn does not wait
    KDA_TRACE_SPAN(trace::WAIT, at.slot, at.parity ^ 1);
    const bool whole = w.length - done >= C;
    if (!whole) {  // A box would bring the next sequence's rows, or nobody's. Beta is 0 there, but 0 times NaN is NaN.
      const uint16_t *from = static_cast<const uint16_t *>(a.v.data) + row(a.v, w.b, w.begin + done, w.hv) + w.slab * R::SLAB;
#pragma unroll 1
      for (int i = lane * 8; i < C * R::SLAB; i += 32 * 8) {
        const int token = i / R::SLAB, value = i % R::SLAB;
        *reinterpret_cast<uint4 *>(&v[typename R::Rows{}(token, value)]) =
            done + token < w.length ? *reinterpret_cast<const uint4 *>(from + token * a.v.stride_token + value) : uint4{0, 0, 0, 0};
      }
      __syncwarp();
    }
    if (lane == 0) {
      full.arrive_expect_tx(Chunk::BYTES + (whole ? sizeof sm.v[0] : 0));
      cute::SM90_BULK_COPY_G2S::copy(image, &sm.full[at.slot], sm.image[at.slot], Chunk::BYTES);
      if (whole)
        for (int p = 0; p < R::PANELS; ++p)
          cute::SM90_TMA_LOAD_4D::copy(&map, &sm.full[at.slot], static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST), v + p * C * R::PANEL,
                                       w.slab * R::SLAB + p * R::PANEL, w.hv, static_cast<int>(w.begin) + done, static_cast<int>(w.b));
    }
    KDA_TRACE_SPAN(trace::LOAD, at.slot, at.parity);
    image += chunk_stride;
    at.advance();
  }
}

// ---- The warp that stores.
template <class R>
__device__ __forceinline__ void store_chunks(const kda_args &a, const CUtensorMap &map, typename R::Shared &sm, const Walk &w) {
  const int lane = threadIdx.x & 31;
  Turn<R::STAGES> at, before;
  KDA_TRACE_WARP(trace::STORE_WARP);
  for (int done = 0; done < w.length; done += C) {
    KDA_TRACE_STEP(done / C);
    const uint16_t *o = sm.v[at.slot];
    Barrier{shared_address(&sm.done[at.slot])}.wait(at.parity);
    KDA_TRACE_SPAN(trace::WAIT, at.slot, at.parity);
    if (w.length - done < C) {  // A box would write over the next sequence's rows.
      uint16_t *to = static_cast<uint16_t *>(a.o.data) + row(a.o, w.b, w.begin + done, w.hv) + w.slab * R::SLAB;
#pragma unroll 1
      for (int i = lane * 8; i < (w.length - done) * R::SLAB; i += 32 * 8) {
        const int token = i / R::SLAB, value = i % R::SLAB;
        *reinterpret_cast<uint4 *>(to + token * a.o.stride_token + value) = *reinterpret_cast<const uint4 *>(&o[typename R::Rows{}(token, value)]);
      }
    } else if (lane == 0) {
      cute::tma_store_fence();  // what the math warps wrote, and this one now knows of, becomes visible to the copy engine
      for (int p = 0; p < R::PANELS; ++p)
        cute::SM90_TMA_STORE_4D::copy(&map, o + p * C * R::PANEL, w.slab * R::SLAB + p * R::PANEL, w.hv, static_cast<int>(w.begin) + done,
                                      static_cast<int>(w.b));
      cute::tma_store_arrive();
      cute::tma_store_wait<1>();  // the stage before this one has been read
      if (done > 0) Barrier{shared_address(&sm.empty[before.slot])}.arrive();
    }
    KDA_TRACE_SPAN(trace::STORE, at.slot, at.parity);
    before = at;
    at.advance();
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");  // a block must not end while its shared memory is being read
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
      for (int e = 0; e < 4; ++e) f(s[mt][nt][e], 8 * nt + 2 * t + (e & 1), 16 * mt + g + (e / 2) * 8);
}
__device__ __forceinline__ int64_t state_of(uint32_t pair) { return pair * static_cast<int64_t>(K * V); }
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

// ---- The math warps.
template <class R>
__device__ __forceinline__ void compute_chunks(const kda_args &a, typename R::Shared &sm, const Walk &w) {
  using v2::ldmatrix, v2::ldmatrix_trans, v2::mma, v2::pack_bf16, v2::low_bf16, v2::high_bf16;
  constexpr int TILES = R::ROWS_OF_16, STEPS = K / 16;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, t = lane % 4;
  const int value0 = w.slab * R::SLAB + warp * R::WARP_ROWS;  // this warp's first value channel

  // S^T: s[mt][nt] is value channels 16 mt + (g, g + 8), key channels 8 nt + (2t, 2t + 1).
  float s[TILES][K / 8][4];
  const uint32_t pair = static_cast<uint32_t>(w.n) * a.heads_v + w.hv;  // there are no more than blocks
  if (!a.initial_state)
    for_state<R>(s, [&](float &x, int, int) { x = 0.f; });
  else if (a.state_dtype == KDA_BF16)
    load_state<R>(s, static_cast<const uint16_t *>(a.initial_state) + state_of(pair), a.state_v_first, value0);
  else
    load_state<R>(s, static_cast<const float *>(a.initial_state) + state_of(pair), a.state_v_first, value0);

  // Where this lane points ldmatrix. K~, Q~: matrices (tokens 0-7, unit 0), (0-7, 1), (8-15, 0), (8-15, 1), B[k = channel][n = token].
  // K-: (tokens 0-7, unit 0), (8-15, 0), (0-7, 1), (8-15, 1), transposed: B[k = token][n = channel].
  // V and O: as K~, transposed: what arrives is (value channel, token), the order of R^T and O^T. Base addresses have zeros in
  // all bits that steps and tiles are XORed into.
  const int row_16 = (lane & 7) + (lane & 16) / 2, unit_8 = lane & 8;
  uint32_t at_rows = 2 * ImageTile{}(row_16, unit_8);
  uint32_t at_columns = Chunk::K_REST + 2 * ImageTile{}(lane & 15, (lane & 16) / 2);
  uint32_t at_values = 2 * typename R::Rows{}(row_16, warp * R::WARP_ROWS + unit_8);

  // Where everything lies, in plain addresses. The compiler may not look behind them: it would work them out again, from
  // thread index and block, in every chunk.
  using Shared = typename R::Shared;
  uint32_t base = shared_address(&sm);
  asm volatile("" : "+r"(base), "+r"(at_rows), "+r"(at_columns), "+r"(at_values));
  const auto image_at = [&](uint32_t slot) { return base + static_cast<uint32_t>(offsetof(Shared, image)) + slot * Chunk::BYTES; };
  const auto barrier = [&](size_t array, uint32_t slot) { return Barrier{base + static_cast<uint32_t>(array) + slot * 8}; };

  // r = S^T K~^T and o = S^T Q~^T of the chunk to come: [V,C] in accumulators of 8 tokens. S decays as soon as it has been read.
  float r[TILES][2][4] = {}, o[TILES][2][4] = {};
  const auto read_state = [&](uint32_t image, uint32_t decays, int step) {  // channels 16 step .. + 16
    uint32_t k_decayed[4], q_decayed[4];
    ldmatrix(k_decayed, (image + at_rows) ^ (step * 32));
    ldmatrix(q_decayed, ((image + at_rows) ^ (step * 32)) + Chunk::Q_DECAYED);
    float d0[2], d1[2];
    load_shared(d0, decays + (16 * step + 2 * t) * 4);
    load_shared(d1, decays + (16 * step + 8 + 2 * t) * 4);
#pragma unroll
    for (int mt = 0; mt < TILES; ++mt) {
      float(&s0)[4] = s[mt][2 * step], (&s1)[4] = s[mt][2 * step + 1];
      const uint32_t fs[4] = {pack_bf16(s0[0], s0[1]), pack_bf16(s0[2], s0[3]), pack_bf16(s1[0], s1[1]), pack_bf16(s1[2], s1[3])};
      mma(r[mt][0], fs, k_decayed[0], k_decayed[1]);
      mma(r[mt][1], fs, k_decayed[2], k_decayed[3]);
      mma(o[mt][0], fs, q_decayed[0], q_decayed[1]);
      mma(o[mt][1], fs, q_decayed[2], q_decayed[3]);
      s0[0] *= d0[0], s0[1] *= d0[1], s0[2] *= d0[0], s0[3] *= d0[1];
      s1[0] *= d1[0], s1[1] *= d1[1], s1[2] *= d1[0], s1[3] *= d1[1];
    }
  };
  // V^T, T' and M of the chunk to come, read as soon as the last products are issued; two tiles leave no registers for that.
  constexpr bool AHEAD = TILES == 1;
  uint32_t v[TILES][4], bt[4], bm[4];
  const auto read_operands = [&](uint32_t slot) {
#pragma unroll
    for (int mt = 0; mt < TILES; ++mt) ldmatrix_trans(v[mt], (base + at_values + slot * static_cast<uint32_t>(sizeof sm.v[0])) ^ (mt * 32));
    load_shared(bt, image_at(slot) + Chunk::T + lane * 16);
    load_shared(bm, image_at(slot) + Chunk::M + lane * 16);
  };

  Turn<R::STAGES> at;
  KDA_TRACE_WARP(trace::MATH_WARP + warp);
  if (w.length > 0) {
    barrier(offsetof(Shared, full), 0).wait(0);
    if (AHEAD) read_operands(0);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) read_state(image_at(0), image_at(0) + Chunk::DECAY, step);
  }
  for (int done = 0; done < w.length; done += C) {
    KDA_TRACE_STEP(done / C);
    // ---- Everything to wait for comes first, while the last products are still under way. Behind the last chunk r, o and
    // the operands are whatever the next stage holds, and nobody looks at them; S must not decay once more.
    Turn<R::STAGES> next = at;
    next.advance();
    const bool more = done + C < w.length;
    if (more) barrier(offsetof(Shared, full), next.slot).wait(next.parity);
    KDA_TRACE_SPAN(trace::WAIT, next.slot, next.parity);
    const uint32_t image = image_at(at.slot), next_image = image_at(next.slot);
    const uint32_t decays = more ? next_image + Chunk::DECAY : base + static_cast<uint32_t>(offsetof(Shared, ones));

    // ---- R^T = V^T - r, U^T = R^T T'^T
    if (!AHEAD) read_operands(at.slot);
    float product[TILES][2][4] = {};
#pragma unroll
    for (int mt = 0; mt < TILES; ++mt) {
      uint32_t fr[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        fr[i] = pack_bf16(low_bf16(v[mt][i]) - r[mt][i / 2][i % 2 * 2], high_bf16(v[mt][i]) - r[mt][i / 2][i % 2 * 2 + 1]);
      mma(product[mt][0], fr[0], fr[1], bt[0]);
      mma(product[mt][1], fr, bt[2], bt[3]);
      mma(product[mt][0], fr[0], fr[1], bt[1]);
      mma(product[mt][1], fr[2], fr[3], bm[1]);  // the low part of T'(1,1)
    }
    uint32_t u[TILES][4];
#pragma unroll
    for (int mt = 0; mt < TILES; ++mt)
#pragma unroll
      for (int i = 0; i < 4; ++i) u[mt][i] = pack_bf16(product[mt][i / 2][i % 2 * 2], product[mt][i / 2][i % 2 * 2 + 1]);

    // ---- O^T = o + U^T M^T
#pragma unroll
    for (int mt = 0; mt < TILES; ++mt) {
      mma(o[mt][0], u[mt][0], u[mt][1], bm[0]);
      mma(o[mt][1], u[mt], bm[2], bm[3]);
    }
    KDA_TRACE_SPAN(trace::SOLVE, at.slot, at.parity);

    // ---- One pass over S: add U^T K-, and three slices behind it read for the next chunk.
    constexpr int BEHIND = 3;
#pragma unroll
    for (int step = 0; step < STEPS + BEHIND; ++step) {
      if (step < STEPS) {
        uint32_t k_rest[4];
        ldmatrix_trans(k_rest, (image + at_columns) ^ (step * 32));
#pragma unroll
        for (int mt = 0; mt < TILES; ++mt) {
          mma(s[mt][2 * step], u[mt], k_rest[0], k_rest[1]);
          mma(s[mt][2 * step + 1], u[mt], k_rest[2], k_rest[3]);
        }
      }
      if (step == BEHIND - 1) {  // O is final by now
#pragma unroll
        for (int mt = 0; mt < TILES; ++mt) {
          stmatrix_trans((base + at_values + at.slot * static_cast<uint32_t>(sizeof sm.v[0])) ^ (mt * 32),
                         pack_bf16(o[mt][0][0], o[mt][0][1]), pack_bf16(o[mt][0][2], o[mt][0][3]),
                         pack_bf16(o[mt][1][0], o[mt][1][1]), pack_bf16(o[mt][1][2], o[mt][1][3]));
#pragma unroll
          for (int nt = 0; nt < 2; ++nt)
#pragma unroll
            for (int e = 0; e < 4; ++e) o[mt][nt][e] = r[mt][nt][e] = 0.f;
        }
      }
      if (step >= BEHIND) read_state(next_image, decays, step - BEHIND);
    }
    if (AHEAD) read_operands(next.slot);
    __syncwarp();
    if (lane == 0) barrier(offsetof(Shared, done), at.slot).arrive();
    KDA_TRACE_SPAN(trace::STATE, at.slot, at.parity);
    at = next;
  }

  if (!a.final_state) return;
  if (a.state_dtype == KDA_BF16)
    store_state<R>(s, static_cast<uint16_t *>(a.final_state) + state_of(pair), a.state_v_first, value0);
  else
    store_state<R>(s, static_cast<float *>(a.final_state) + state_of(pair), a.state_v_first, value0);
}

template <class R>
__global__ void __launch_bounds__(R::THREADS, R::BLOCKS_PER_SM) recur(const __grid_constant__ kda_args a, const __grid_constant__ CUtensorMap v,
                                                                               const __grid_constant__ CUtensorMap o) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typename R::Shared &sm = *reinterpret_cast<typename R::Shared *>(shared);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::STAGES; ++i) {
      Barrier{shared_address(&sm.full[i])}.init(1);
      Barrier{shared_address(&sm.done[i])}.init(R::WARPS);
      Barrier{shared_address(&sm.empty[i])}.init(1);
    }
    fence_barrier_init();
  }
  for (int i = threadIdx.x; i < K; i += R::THREADS) sm.ones[i] = 1.f;
  __syncthreads();  // the last one: from here on each warp waits only for what it needs
  const Walk w = walk_of<R>(a);
  if (warp < R::WARPS) {
    if constexpr (R::MOVES_REGISTERS) cutlass::arch::warpgroup_reg_alloc<R::MATH_REGISTERS>();
    compute_chunks<R>(a, sm, w);
  } else {
    if constexpr (R::MOVES_REGISTERS) cutlass::arch::warpgroup_reg_dealloc<R::COPY_REGISTERS>();
    if (warp == R::WARPS) load_chunks<R>(a, v, sm, w);
    if (warp == R::WARPS + 1) store_chunks<R>(a, o, sm, w);
  }
}

}  // namespace kda::v3

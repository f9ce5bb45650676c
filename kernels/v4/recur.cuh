// Kernel 2 of v4: the recurrence over chunks of 64 tokens. One block per (sequence, value head, slab of value channels), a
// warpgroup for each 64 value channels. As in v2 everything is transposed: value channels are rows of products,
//     S^T [V,K] stays in fp32 accumulators from the first chunk to the last; rounded in pairs it is the A operand of
//     R^T = V^T - S^T K~^T        [V,C]
//     U^T = R^T T'^T              [V,C]
//     O^T = S^T Q~^T + U^T M^T    [V,C]
//     S^T = S^T diag(e^G_C) + U^T K-
// All products are wgmma with A in registers. B operands (K~, Q~, K-, T', M) come from shared memory, where a ring of
// stages is filled ahead by one thread: one bulk copy a chunk.
//
// The serial chain is S -> R -> U -> S. wgmma runs in the background, in the order of issue, so what the chain does not
// wait for is put where the tensor cores would wait for the chain: half of S^T Q~^T behind S^T K~^T while R is rounded, the
// other half behind U while U is rounded, U^T M^T behind the update of S while S is rounded.
#pragma once
#include "ptx.cuh"
#include "traits.cuh"

namespace kda::v4 {

template <int WARPGROUPS_>
struct Recur {
  static constexpr int WARPGROUPS = WARPGROUPS_;  // that compute; the warps of one more move data
  static constexpr int WARPS = 4 * WARPGROUPS;
  static constexpr int THREADS = 128 * (WARPGROUPS + 1);
  static constexpr bool DEAL_REGISTERS = WARPGROUPS == 2;  // 65536 / 384 threads are 168 each: too few, so they are dealt anew
  static constexpr int TO_COMPUTE = 232, TO_MOVE = 40;     // more than there are, and `take_registers` would wait for ever
  static_assert(!DEAL_REGISTERS || WARPGROUPS * TO_COMPUTE + TO_MOVE <= 168 * (WARPGROUPS + 1), "a block has what it was started with");
  static constexpr int SLAB = 64 * WARPGROUPS;             // value channels of a block
  static constexpr int SLABS = V / SLAB;
  static constexpr int STAGES = 3;               // chunk images
  static constexpr int TILE = Chunk::PANEL;      // v or o of a chunk and a warpgroup: [C,64] bf16, swizzled as a panel
  static constexpr int V_TILES = 4 / WARPGROUPS - 1;  // a warpgroup's, and one tile for o: what the stages leave of 227 KB
  // The plan of the shared memory: stages, v tiles [WARPGROUPS][V_TILES], o tiles [WARPGROUPS]. Stages start at multiples of
  // 1024 bytes, which leaves room behind each image: the barriers stand behind the first.
  static constexpr int STAGE = (Chunk::BYTES + 1023) / 1024 * 1024;
  static constexpr int V_AT = STAGES * STAGE;
  static constexpr int O_AT = V_AT + WARPGROUPS * V_TILES * TILE;
  static constexpr int SHARED = O_AT + WARPGROUPS * TILE;
  // Barriers, named for what ends a phase. The moving warps wait for FREE, the computing ones for FULL, with o the other way.
  static constexpr int IMAGE_FULL = Chunk::BYTES;                   // [STAGES]
  static constexpr int IMAGE_FREE = IMAGE_FULL + STAGES * 8;        // [STAGES]
  static constexpr int V_FULL = IMAGE_FREE + STAGES * 8;            // [WARPGROUPS][V_TILES]
  static constexpr int V_FREE = V_FULL + WARPGROUPS * V_TILES * 8;  // [WARPGROUPS][V_TILES]
  static constexpr int O_FULL = V_FREE + WARPGROUPS * V_TILES * 8;  // [WARPGROUPS]
  static constexpr int O_FREE = O_FULL + WARPGROUPS * 8;            // [WARPGROUPS]
  static_assert(O_FREE + WARPGROUPS * 8 <= STAGE, "the barriers must fit behind an image");
  static_assert(V % SLAB == 0, "slabs must tile the value channels");
  static_assert(SHARED <= 227 * 1024, "a block of sm_90 has at most 227 KB of shared memory");
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

// ---- State in and out. A thread holds (value g or g + 8 of its warp, channel) as s[channel / 16][...]: see ptx.cuh.
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(uint16_t x) { return bf16_to_float(x); }
__device__ __forceinline__ void narrow(float &to, float x) { to = x; }
__device__ __forceinline__ void narrow(uint16_t &to, float x) { to = float_to_bf16(x); }

// f(x, channel, value): for each number of this thread; `value` counts from the warp's first value channel.
template <class F>
__device__ __forceinline__ void for_state(float (&s)[K / 16][8], F f) {
  const int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
#pragma unroll
  for (int step = 0; step < K / 16; ++step)
#pragma unroll
    for (int e = 0; e < 8; ++e) f(s[step][e], 16 * step + e / 4 * 8 + 2 * t + (e & 1), g + (e & 2) * 4);
}
template <class T>
__device__ __forceinline__ void load_state(float (&s)[K / 16][8], const T *from, bool v_first, int value0) {
  if (v_first)  // [V,K]
    for_state(s, [&](float &x, int channel, int value) { x = widen(from[(value0 + value) * K + channel]); });
  else  // [K,V]
    for_state(s, [&](float &x, int channel, int value) { x = widen(from[channel * V + value0 + value]); });
}
template <class T>
__device__ __forceinline__ void store_state(float (&s)[K / 16][8], T *to, bool v_first, int value0) {
  if (v_first)
    for_state(s, [&](float x, int channel, int value) { narrow(to[(value0 + value) * K + channel], x); });
  else
    for_state(s, [&](float x, int channel, int value) { narrow(to[channel * V + value0 + value], x); });
}

// k-steps of S^T Q~^T that run while R is rounded; the others run while U is.
constexpr int QUERIES_FIRST = 1;

// Accumulators of 16 columns -> A operand of one k-step.
__device__ __forceinline__ void round_operand(uint32_t (&to)[4], const float (&from)[8]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) to[e] = pack_bf16(from[2 * e], from[2 * e + 1]);
}

// Descriptors of one k-step: 16 channels of K~ or Q~, block (I,J) of T' or M, 16 tokens of K-.
__device__ __forceinline__ Operand channels_16(uint32_t tile, int step) {
  return rows_are_n(tile) + (step / 4 * Chunk::PANEL + step % 4 * 32);
}
__device__ __forceinline__ Operand block_16(uint32_t panel, int I, int J) { return rows_are_n(panel) + (I * BLOCK * 128 + J * 32); }
__device__ __forceinline__ Operand tokens_16(uint32_t tile, int J) { return rows_are_k(tile, Chunk::PANEL) + J * BLOCK * 128; }

// Where one stands in a ring of `count` buffers: which is next, and the parity of its barriers' phase. To wait for the other
// parity is to wait for the phase before, and before the first phase that is no wait.
struct Turn {
  int at = 0, parity = 0;
  __device__ __forceinline__ Turn next(int count) const { return at + 1 < count ? Turn{at + 1, parity} : Turn{0, parity ^ 1}; }
};

// One thread: images in order, each into the next stage as soon as that is free.
template <class R>
__device__ __forceinline__ void bring_images(const kda_args &a, const char *image, int length, uint32_t shared) {
  Turn stage;
  for (int tokens = length; tokens > 0; tokens -= C, stage = stage.next(R::STAGES)) {
    barrier_wait(shared + R::IMAGE_FREE + 8 * stage.at, stage.parity ^ 1);
    barrier_arrive_expect(shared + R::IMAGE_FULL + 8 * stage.at, Chunk::BYTES);
    bulk_copy(shared + stage.at * R::STAGE, image, Chunk::BYTES, shared + R::IMAGE_FULL + 8 * stage.at);
    image += static_cast<int64_t>(a.heads_v) * Chunk::BYTES;
  }
}

// Rows of v or o in global memory and in a tile, as one warp copies them: 16 bytes a lane, four rows of 128 bytes at once.
struct Rows {
  char *global;
  int64_t step;     // bytes of four rows
  uint32_t shared;  // without the tile's address
  int first;        // this lane's first row
  __device__ __forceinline__ Rows(const kda_tensor &x, const Span &span, int hv, int value0) {
    const int lane = threadIdx.x & 31;
    first = lane / 8;
    global = static_cast<char *>(x.data) + (row(x, span.b, span.begin + first, hv) + value0 + lane % 8 * 8) * 2;
    step = x.stride_token * 8;
    shared = panel_offset(first, lane % 8);
  }
  // Four rows on, the swizzle differs in one bit.
  __device__ __forceinline__ uint32_t at(uint32_t tile, int i) const { return tile + (shared ^ (i % 2 * 64)) + i * 512; }
};

// One warp: v of every warpgroup.
template <class R>
__device__ __forceinline__ void bring_v(const kda_args &a, const Span &span, int hv, int value0, uint32_t shared) {
  Rows rows(a.v, span, hv, value0);
  Turn tile;
  for (int tokens = static_cast<int>(span.end - span.begin); tokens > 0; tokens -= C, tile = tile.next(R::V_TILES)) {
#pragma unroll 1
    for (int group = 0; group < R::WARPGROUPS; ++group) {
      const int at = group * R::V_TILES + tile.at;
      const char *v = rows.global + group * 128;
      barrier_wait(shared + R::V_FREE + 8 * at, tile.parity ^ 1);
#pragma unroll 4
      for (int i = 0; i < C / 4; ++i, v += rows.step)
        cp_async(rows.at(shared + R::V_AT + at * R::TILE, i), v, rows.first + 4 * i < tokens);  // zeros past the end, nothing is read
      barrier_arrive_after_copies(shared + R::V_FULL + 8 * at);
    }
    rows.global += rows.step * (C / 4);
  }
}

// One warp: o of one warpgroup, valid rows only. The row after the last may be another sequence's.
template <class R>
__device__ __forceinline__ void take_o(const kda_args &a, const Span &span, int hv, int value0, uint32_t tile, uint32_t full, uint32_t free) {
  Rows rows(a.o, span, hv, value0);
  int parity = 0;
  for (int tokens = static_cast<int>(span.end - span.begin); tokens > 0; tokens -= C, parity ^= 1) {
    barrier_wait(full, parity);
#pragma unroll
    for (int batch = 0; batch < 4; ++batch) {
      uint4 x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = load_shared(rows.at(tile, 4 * batch + i));
#pragma unroll
      for (int i = 0; i < 4; ++i, rows.global += rows.step)
        if (rows.first + 16 * batch + 4 * i < tokens) *reinterpret_cast<uint4 *>(rows.global) = x[i];
    }
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrier_arrive(free);
  }
}

template <class R>
__global__ void __launch_bounds__(R::THREADS, 1) recur(const __grid_constant__ kda_args a) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);
  const int lane = threadIdx.x & 31, t = lane % 4;
  const int warp = __shfl_sync(ALL_LANES, threadIdx.x / 32, 0);  // from one lane: known to be the same in all of them
  const int slab = blockIdx.x % R::SLABS;
  const int hv = blockIdx.x / R::SLABS % a.heads_v;
  const int64_t n = ranked_sequence(a, blockIdx.x / R::SLABS / a.heads_v);
  const Span span = span_of(a, n);
  const int length = static_cast<int>(span.end - span.begin);

  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < R::STAGES; ++i) {
      barrier_init(shared + R::IMAGE_FULL + 8 * i, 1);
      barrier_init(shared + R::IMAGE_FREE + 8 * i, R::WARPS);
    }
#pragma unroll
    for (int i = 0; i < R::WARPGROUPS * R::V_TILES; ++i) {
      barrier_init(shared + R::V_FULL + 8 * i, 32);
      barrier_init(shared + R::V_FREE + 8 * i, 4);
    }
#pragma unroll
    for (int i = 0; i < R::WARPGROUPS; ++i) {
      barrier_init(shared + R::O_FULL + 8 * i, 4);
      barrier_init(shared + R::O_FREE + 8 * i, 1);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (warp >= R::WARPS) {
    if constexpr (R::DEAL_REGISTERS) give_registers<R::TO_MOVE>();
    const int role = warp - R::WARPS, group = role - 2;
    if (role == 0 && lane == 0) {
      wait_for_kernel_before();  // `prepare` has written the images; no one else reads what it writes
      bring_images<R>(a, chunk_at(a, first_slot(a, n), hv), length, shared);
    } else if (role == 1) {
      bring_v<R>(a, span, hv, slab * R::SLAB, shared);
    } else if (role > 1 && group < R::WARPGROUPS) {
      take_o<R>(a, span, hv, slab * R::SLAB + group * 64, shared + R::O_AT + group * R::TILE, shared + R::O_FULL + 8 * group,
                shared + R::O_FREE + 8 * group);
    }
    return;
  }
  if constexpr (R::DEAL_REGISTERS) take_registers<R::TO_COMPUTE>();

  float s[K / 16][8];
  const int value0 = slab * R::SLAB + warp * 16;  // this warp's first value channel
  const int64_t state = (n * a.heads_v + hv) * (K * V);
  if (!a.initial_state)
    for_state(s, [&](float &x, int, int) { x = 0.f; });
  else if (a.state_dtype == KDA_BF16)
    load_state(s, static_cast<const uint16_t *>(a.initial_state) + state, a.state_v_first, value0);
  else
    load_state(s, static_cast<const float *>(a.initial_state) + state, a.state_v_first, value0);

  const int group = warp / 4;
  const uint32_t v_full = shared + R::V_FULL + group * R::V_TILES * 8, v_free = shared + R::V_FREE + group * R::V_TILES * 8;
  const uint32_t o_full = shared + R::O_FULL + 8 * group, o_free = shared + R::O_FREE + 8 * group;
  // This lane's row for ldmatrix and stmatrix: matrices (tokens 0-7, unit 0), (0-7, 1), (8-15, 0), (8-15, 1) of the warp's two units.
  const uint32_t matrices = panel_offset((lane & 7) + (lane & 16) / 2, warp % 4 * 2 + (lane / 8) % 2);
  const uint32_t v_matrices = shared + R::V_AT + group * R::V_TILES * R::TILE + matrices;
  const uint32_t o_matrices = shared + R::O_AT + group * R::TILE + matrices;

  uint32_t fs[K / 16][4];              // S^T as A operand
  float r[C / 16][8], o[C / 16][8];    // R^T, O^T
  // v of a chunk becomes the start value of R^T = V^T - S^T K~^T.
  auto load_v = [&](Turn tile) {
#pragma unroll
    for (int J = 0; J < BLOCKS; ++J) {
      uint32_t v[4];
      ldmatrix_trans(v, v_matrices + tile.at * R::TILE + J * (BLOCK * 128));
#pragma unroll
      for (int e = 0; e < 4; ++e) r[J][2 * e] = low_bf16(v[e]), r[J][2 * e + 1] = high_bf16(v[e]);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(v_free + 8 * tile.at);
  };
  auto subtract_keys = [&](uint32_t image) {
#pragma unroll
    for (int step = 0; step < K / 16; ++step) round_operand(fs[step], s[step]);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < K / 16; ++step) wgmma<-1>(r, fs[step], channels_16(image + Chunk::K_DECAYED, step));
    wgmma_commit();
  };

  if (length > 0) {
    Turn stage, tile;  // of the chunk: its image's and its v's
    int o_parity = 0;
    barrier_wait(v_full, 0);
    load_v(tile);
    barrier_wait(shared + R::IMAGE_FULL, 0);
    subtract_keys(shared);
    for (int tokens = length; tokens > 0; tokens -= C) {
      const uint32_t image = shared + stage.at * R::STAGE;

      // ---- U^T = R^T T'^T, T' = its rounded blocks and the low parts of the diagonal ones
      wgmma_wait<0>(r);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < QUERIES_FIRST; ++step) wgmma(o, fs[step], channels_16(image + Chunk::Q_DECAYED, step), step > 0);
      wgmma_commit();
      uint32_t fr[C / 16][4];
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J) round_operand(fr[J], r[J]);
      float u[BLOCKS][8];
      wgmma_fence();
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J)
#pragma unroll
        for (int I = J; I < BLOCKS; ++I) wgmma(u[I], fr[J], block_16(image + Chunk::T, I, J), J > 0);
#pragma unroll
      for (int I = 0; I < BLOCKS; ++I) wgmma(u[I], fr[I], block_16(image + Chunk::T, low_row(I), low_column(I)));
      wgmma_commit();
#pragma unroll
      for (int step = QUERIES_FIRST; step < K / 16; ++step) wgmma(o, fs[step], channels_16(image + Chunk::Q_DECAYED, step));
      wgmma_commit();
      // S is decayed while products read its rounded copy.
      const float *decay = reinterpret_cast<const float *>(shared_memory + stage.at * R::STAGE + Chunk::DECAY) + 2 * t;
#pragma unroll
      for (int step = 0; step < K / 16; ++step)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 d = *reinterpret_cast<const float2 *>(decay + 16 * step + 8 * half);
          s[step][4 * half] *= d.x, s[step][4 * half + 1] *= d.y;
          s[step][4 * half + 2] *= d.x, s[step][4 * half + 3] *= d.y;
        }
      async_proxy_fence();  // the stage was read as ordinary memory, and will be refilled by the copy engine

      // ---- S^T += U^T K-, then O^T += U^T M^T
      wgmma_wait<1>(u);
      uint32_t fu[C / 16][4];
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J) round_operand(fu[J], u[J]);
      wgmma_fence();
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J) wgmma_transposed(s, fu[J], tokens_16(image + Chunk::K_REST, J));
      wgmma_commit();
      const Turn next_stage = stage.next(R::STAGES), next_tile = tile.next(R::V_TILES);
      if (tokens > C) barrier_wait(v_full + 8 * next_tile.at, next_tile.parity);
      load_v(next_tile);
      wgmma_fence();
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J) wgmma(o, fu[J], channels_16(image + Chunk::M, J));
      wgmma_commit();

      // ---- The next chunk's R goes before this chunk's o. After the last chunk it is made of what the buffers happen to
      // hold, and nobody looks at it.
      if (tokens > C) barrier_wait(shared + R::IMAGE_FULL + 8 * next_stage.at, next_stage.parity);
      wgmma_wait<1>(s);
      subtract_keys(shared + next_stage.at * R::STAGE);

      // ---- O^T, transposed, into its tile
      barrier_wait(o_free, o_parity ^ 1);
      wgmma_wait<1>(o);
#pragma unroll
      for (int I = 0; I < BLOCKS; ++I) {
        uint32_t packed[4];
        round_operand(packed, o[I]);
        stmatrix_trans(o_matrices + I * (BLOCK * 128), packed);
      }
      __syncwarp();
      if (lane == 0) {
        barrier_arrive(o_full);
        barrier_arrive(shared + R::IMAGE_FREE + 8 * stage.at);
      }
      stage = next_stage, tile = next_tile, o_parity ^= 1;
    }
    wgmma_wait<0>(r);
  }

  if (!a.final_state) return;
  if (a.state_dtype == KDA_BF16)
    store_state(s, static_cast<uint16_t *>(a.final_state) + state, a.state_v_first, value0);
  else
    store_state(s, static_cast<float *>(a.final_state) + state, a.state_v_first, value0);
}

}  // namespace kda::v4

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
  static constexpr int WARPGROUPS = WARPGROUPS_;
  static constexpr int WARPS = 4 * WARPGROUPS;         // that compute
  static constexpr int THREADS = 128 * (WARPGROUPS + 1);  // one more warpgroup, of which one thread starts the bulk copies
  static constexpr bool MOVE_REGISTERS = WARPGROUPS == 2;  // 65536 / 384 threads are 168 each: too few, so they are dealt anew
  static constexpr int SLAB = 64 * WARPGROUPS;    // value channels of a block
  static constexpr int SLABS = V / SLAB;
  static constexpr int STAGES = 3;                // chunk images
  static constexpr int TILE = C * 16 * 2;         // v, later o, of a chunk and a warp: [C,16] bf16
  static constexpr int TILES = 4 / WARPGROUPS;    // chunks of v under way: what the stages leave of 227 KB
  // The plan of the shared memory: stages, then v/o tiles [TILES][WARPS]. Stages start at multiples of 1024 bytes, which
  // leaves room behind each image: the barriers stand behind the first.
  static constexpr int STAGE = (Chunk::BYTES + 1023) / 1024 * 1024;
  static constexpr int FULL_AT = Chunk::BYTES;
  static constexpr int FREE_AT = FULL_AT + STAGES * 8;
  static constexpr int TILES_AT = STAGES * STAGE;
  static constexpr int SHARED = TILES_AT + TILES * WARPS * TILE;
  static_assert(FREE_AT + STAGES * 8 <= STAGE, "the barriers must fit behind an image");
  static_assert(V % SLAB == 0, "slabs must tile the value channels");
  static_assert(SHARED <= 227 * 1024, "a block of sm_90 has at most 227 KB of shared memory");
};

// Byte offset of 16-byte unit `unit` (8 value channels) of token `token` in a v/o tile. Four rows of 32 bytes fill the banks
// once, so rows 4-7 of the eight that ldmatrix reads at once take the other unit's place.
__device__ __forceinline__ int tile_offset(int token, int unit) { return token * 32 + ((unit ^ ((token >> 2) & 1)) << 4); }

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

// One thread: chunk c into stage c % STAGES, as soon as that is free.
template <class R>
__device__ __forceinline__ void fill_stages(const kda_args &a, const char *image, int chunks, uint32_t shared) {
  for (int c = 0; c < chunks; ++c) {
    const int stage = c % R::STAGES;
    const uint32_t full = shared + R::FULL_AT + 8 * stage;
    if (c >= R::STAGES) barrier_wait(shared + R::FREE_AT + 8 * stage, (c / R::STAGES - 1) & 1);
    barrier_arrive_expect(full, Chunk::BYTES);
    bulk_copy(shared + stage * R::STAGE, image, Chunk::BYTES, full);
    image += static_cast<int64_t>(a.heads_v) * Chunk::BYTES;
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
    for (int stage = 0; stage < R::STAGES; ++stage) {
      barrier_init(shared + R::FULL_AT + 8 * stage, 1);
      barrier_init(shared + R::FREE_AT + 8 * stage, R::WARPS);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (warp >= R::WARPS) {
    if constexpr (R::MOVE_REGISTERS) give_registers<24>();
    if (warp == R::WARPS && lane == 0) fill_stages<R>(a, chunk_at(a, first_slot(a, n), hv), (length + C - 1) / C, shared);
    return;
  }
  if constexpr (R::MOVE_REGISTERS) take_registers<240>();

  // ---- v and o: a warp looks after its 16 value channels alone. Copies: lane -> token lane / 2 + 16 i, unit lane % 2.
  const int value0 = slab * R::SLAB + warp * 16;  // this warp's first value channel
  const char *v_next = static_cast<const char *>(a.v.data) + (row(a.v, span.b, span.begin + lane / 2, hv) + value0 + lane % 2 * 8) * 2;
  char *o_next = static_cast<char *>(a.o.data) + (row(a.o, span.b, span.begin + lane / 2, hv) + value0 + lane % 2 * 8) * 2;
  const int v_step = static_cast<int>(a.v.stride_token) * (2 * BLOCK), o_step = static_cast<int>(a.o.stride_token) * (2 * BLOCK);
  const uint32_t tiles = shared + R::TILES_AT + warp * R::TILE;
  const uint32_t copy_at = tile_offset(lane / 2, lane % 2);
  const uint32_t matrix_at = tile_offset((lane & 7) + (lane & 16) / 2, (lane / 8) & 1);  // (tokens 0-7, unit 0), (0-7, 1), (8-15, 0), (8-15, 1)
  auto load_v = [&](uint32_t tile, int tokens) {  // of a chunk that begins `tokens` before the end of the sequence
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i)  // rows past the end: zeros, the address is not read
      cp_async(tile + copy_at + i * 512, v_next + i * v_step, lane / 2 + i * BLOCK < tokens);
    cp_async_commit();
    v_next += BLOCKS * v_step;
  };
#pragma unroll
  for (int c = 0; c < R::TILES; ++c) load_v(tiles + c * (R::WARPS * R::TILE), length - c * C);

  float s[K / 16][8];
  const int64_t state = (n * a.heads_v + hv) * (K * V);
  if (!a.initial_state)
    for_state(s, [&](float &x, int, int) { x = 0.f; });
  else if (a.state_dtype == KDA_BF16)
    load_state(s, static_cast<const uint16_t *>(a.initial_state) + state, a.state_v_first, value0);
  else
    load_state(s, static_cast<const float *>(a.initial_state) + state, a.state_v_first, value0);

  uint32_t fs[K / 16][4];      // S^T as A operand
  float r[C / 16][8], o[C / 16][8];
  // S^T K~^T of the chunk in `image`: rounds S 16 channels at a time, each product starts as soon as its operand is there.
  auto read_keys = [&](uint32_t image) {
#pragma unroll
    for (int step = 0; step < K / 16; ++step) round_operand(fs[step], s[step]);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < K / 16; ++step) wgmma(r, fs[step], channels_16(image + Chunk::K_DECAYED, step), step > 0);
    wgmma_commit();
  };

  if (length > 0) {
    int stage = 0, phase = 0, turn = 0;  // the chunk's stage, the parity of its barrier, the chunk's tile
    barrier_wait(shared + R::FULL_AT, 0);
    read_keys(shared);
    for (int tokens = length; tokens > 0; tokens -= C) {
      const uint32_t image = shared + stage * R::STAGE;
      const uint32_t tile = tiles + turn * (R::WARPS * R::TILE);

      // S is decayed while products read its rounded copy; v comes to the accumulators' places.
      const float *decay = reinterpret_cast<const float *>(shared_memory + stage * R::STAGE + Chunk::DECAY) + 2 * t;
#pragma unroll
      for (int step = 0; step < K / 16; ++step)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 d = *reinterpret_cast<const float2 *>(decay + 16 * step + 8 * half);
          s[step][4 * half] *= d.x, s[step][4 * half + 1] *= d.y;
          s[step][4 * half + 2] *= d.x, s[step][4 * half + 3] *= d.y;
        }
      uint32_t fr[C / 16][4];  // v^T, then R^T as A operand
      cp_async_wait<R::TILES - 1>();
      __syncwarp();
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J) ldmatrix_trans(fr[J], tile + matrix_at + J * 512);

      // ---- R^T = V^T - S^T K~^T; U^T = R^T T'^T, T' = its rounded blocks and the low parts of the diagonal ones
      wgmma_wait<0>(r);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < K / 32; ++step) wgmma(o, fs[step], channels_16(image + Chunk::Q_DECAYED, step), step > 0);
      wgmma_commit();
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          fr[J][e] = pack_bf16(low_bf16(fr[J][e]) - r[J][2 * e], high_bf16(fr[J][e]) - r[J][2 * e + 1]);
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
      for (int step = K / 32; step < K / 16; ++step) wgmma(o, fs[step], channels_16(image + Chunk::Q_DECAYED, step), true);
      wgmma_commit();

      // ---- S^T += U^T K-, then O^T += U^T M^T
      wgmma_wait<1>(u);
      uint32_t fu[C / 16][4];
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J) round_operand(fu[J], u[J]);
      wgmma_fence();
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J) wgmma_transposed(s, fu[J], tokens_16(image + Chunk::K_REST, J));
      wgmma_commit();
#pragma unroll
      for (int J = 0; J < BLOCKS; ++J) wgmma(o, fu[J], channels_16(image + Chunk::M, J), true);
      wgmma_commit();

      // ---- The next chunk's S^T K~^T goes first. The last chunk reads itself again, and nobody looks at the result.
      int next = stage, next_phase = phase;
      if (tokens > C) {
        if (++next == R::STAGES) next = 0, next_phase ^= 1;
        barrier_wait(shared + R::FULL_AT + 8 * next, next_phase);
      }
      wgmma_wait<1>(s);
      read_keys(shared + next * R::STAGE);

      // ---- O^T, transposed through the tile where v was, and out: rows of 32 bytes, 16 bytes a lane
      wgmma_wait<1>(o);
      async_proxy_fence();  // this stage was read as ordinary memory too (decay)
      __syncwarp();
      if (lane == 0) barrier_arrive(shared + R::FREE_AT + 8 * stage);
#pragma unroll
      for (int I = 0; I < BLOCKS; ++I) {
        uint32_t packed[4];
        round_operand(packed, o[I]);
        stmatrix_trans(tile + matrix_at + I * 512, packed);
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < BLOCKS; ++i) {
        uint4 out;
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w) : "r"(tile + copy_at + i * 512));
        if (lane / 2 + i * BLOCK < tokens) *reinterpret_cast<uint4 *>(o_next + i * o_step) = out;
      }
      load_v(tile, tokens - R::TILES * C);  // of TILES chunks later, into the bytes that this lane has just read
      o_next += BLOCKS * o_step;
      stage = next, phase = next_phase, turn = (turn + 1) % R::TILES;
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

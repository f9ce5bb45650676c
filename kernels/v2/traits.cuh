// Shapes and the memory plan that both kernels of v2 share.
#pragma once
#include <cstdint>

#include "../common/device.cuh"
#include "ptx.cuh"

namespace kda::v2 {

constexpr int C = 16;    // tokens in a chunk: one m16n8k16 k-step, and a bounded gate spans at most 16 * 5 = 80 < 88 = ln(fp32 max)
constexpr int K = 128;   // key channels
constexpr int V = 128;   // value channels
constexpr int HALF = 8;  // rows on each side of the anchor

constexpr float LOG2E = 1.4426950408889634f;

// One chunk of one value head, as `prepare` leaves it for `recur`: an image of the shared memory that `recur` wants,
// byte for byte, so that copying it needs no index arithmetic. [C,K] tiles are bf16 with swizzled rows (see `tile_offset`).
// T' and M are triangular B fragments, bf16, four registers a lane, 8x8 blocks named by (rows i, columns j):
//     T: T'(0,0), low T'(0,0), T'(1,0), T'(1,1)        M: M(0,0), low T'(1,1), M(1,0), M(1,1)
// The blocks (0,1) are zero. Their registers carry what rounding to bf16 cut off T' next to its diagonal: with repeated
// keys and beta near 1 that halves the error of the whole kernel, and costs no byte.
struct Chunk {
  static constexpr int TILE = C * K * 2;
  static constexpr int FRAGMENT = C * C * 2;
  static constexpr int K_DECAYED = 0;                 // K~ = k e^G            [C,K]
  static constexpr int Q_DECAYED = TILE;              // Q~ = scale q e^G      [C,K]
  static constexpr int K_REST = 2 * TILE;             // K- = k e^(G_C - G)    [C,K]
  static constexpr int T = 3 * TILE;                  // T' = (I + L)^-1 diag(beta)  [C,C]
  static constexpr int M = T + FRAGMENT;              // M  = tril(Q~ K^^T)    [C,C]
  static constexpr int DECAY = M + FRAGMENT;          // e^(G_C), fp32         [K]
  static constexpr int BYTES = DECAY + K * 4;
};
static_assert(Chunk::BYTES == 13824, "864 bytes a token and head: the traffic model in v2.cu counts on it");
static_assert(Chunk::BYTES % 256 == 0, "stages in shared memory must keep the 256-byte alignment that the swizzle XORs into");

// Byte offset of 16-byte unit `unit` (8 channels) of row `row` in a [C,K] tile. Eight rows of one unit column, which is
// what ldmatrix reads at once, lie 256 bytes apart: the same banks. XOR with the row spreads them over all 32 banks;
// it stays inside a 128-byte line, so the coalescing of global stores is kept.
__host__ __device__ constexpr int tile_offset(int row, int unit) { return row * K * 2 + ((unit ^ (row & 7)) << 4); }

// ---- Where a sequence's chunks live. With cu_seqlens, chunk c of sequence n has slot floor(start_n / 16) + n + c:
// consecutive sequences never overlap, since floor(end / 16) - floor(start / 16) + 1 >= ceil((end - start) / 16), so no
// prefix sum over sequences is needed, on the host or on the device; at most N of T / 16 + N slots stay unused.
__host__ __device__ inline int64_t chunks_of(int64_t tokens) { return (tokens + C - 1) / C; }

__device__ inline int64_t first_slot(const kda_args &a, int64_t n) {
  return a.cu_seqlens_bits ? cu_seqlen(a, n) / C + n : n * chunks_of(a.tokens);
}

__device__ inline char *chunk_at(const kda_args &a, int64_t slot, int64_t hv) {
  return static_cast<char *>(a.workspace) + (slot * a.heads_v + hv) * Chunk::BYTES;
}

// The sequence that owns `slot`: the last n whose first slot is <= slot. All 32 lanes probe at once, so 1024 sequences
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

}  // namespace kda::v2

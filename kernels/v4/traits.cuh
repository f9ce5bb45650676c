// Shapes and the memory plan that both kernels of v4 share.
#pragma once
#include <cstdint>

#include "../common/device.cuh"

namespace kda::v4 {

constexpr int C = 64;      // tokens in a chunk: the n of one wgmma, and a quarter of v2's serial steps
constexpr int BLOCK = 16;  // tokens between two anchors: a bounded gate spans at most 16 * 5 = 80 < 88 = ln(fp32 max)
constexpr int BLOCKS = C / BLOCK;
constexpr int K = 128;     // key channels
constexpr int V = 128;     // value channels

// One chunk of one value head, as `prepare` leaves it for `recur`: an image of the shared memory that `recur` wants, so
// that one bulk copy brings it. Tiles are bf16 in panels of 64 rows of 128 bytes, swizzled as wgmma reads them.
//     K~ = k e^G   Q~ = scale q e^G   K- = k e^(G_C - G)    [C,K]: two panels each, channels 0-63 and 64-127
//     T' = (I + L)^-1 diag(beta)      M = tril(Q~ K^^T)     [C,C]: one panel each, row i, column j
// G runs from the start of the chunk. M is zero above its diagonal. Of the 16x16 blocks (I,J) of T' only J <= I is ever read as
// such: blocks above the diagonal carry what rounding to bf16 cut off the diagonal ones, at no byte more (see `low_row`).
struct Chunk {
  static constexpr int PANEL = 64 * 128;
  static constexpr int TILE = 2 * PANEL;
  static constexpr int K_DECAYED = 0;
  static constexpr int Q_DECAYED = TILE;
  static constexpr int K_REST = 2 * TILE;
  static constexpr int T = 3 * TILE;
  static constexpr int M = T + PANEL;
  static constexpr int DECAY = M + PANEL;  // e^(G_C), fp32 [K]
  static constexpr int BYTES = DECAY + K * 4;
};
static_assert(Chunk::BYTES == 66048, "1032 bytes a token and head: the traffic model in v4.cu counts on it");
static_assert(Chunk::DECAY % 1024 == 0, "panels must start at multiples of 1024 bytes: the swizzle is taken from address bits");

// Where the low part of T'(I,I) stands: a 16x16 block of T' above the diagonal, (0,1), (1,2), (2,3), and (0,3) for I = 3.
__host__ __device__ constexpr int low_row(int I) { return I % (BLOCKS - 1); }
__host__ __device__ constexpr int low_column(int I) { return I < BLOCKS - 1 ? I + 1 : BLOCKS - 1; }

// Byte offset of 16-byte unit `unit` (8 numbers) of row `row` in a panel: the 128-byte swizzle of TMA and wgmma.
__host__ __device__ constexpr int panel_offset(int row, int unit) { return row * 128 + ((unit ^ (row & 7)) << 4); }

// ---- Where a sequence's chunks live. With cu_seqlens, chunk c of sequence n has slot floor(start_n / C) + n + c:
// consecutive sequences never overlap, since floor(end / C) - floor(start / C) + 1 >= ceil((end - start) / C), so no prefix
// sum over sequences is needed, on the host or on the device; at most N of T / C + N slots stay unused.
__host__ __device__ inline int64_t chunks_of(int64_t tokens) { return (tokens + C - 1) / C; }

__device__ inline int64_t first_slot(const kda_args &a, int64_t n) {
  return a.cu_seqlens_bits ? cu_seqlen(a, n) / C + n : n * chunks_of(a.tokens);
}

__device__ inline char *chunk_at(const kda_args &a, int64_t slot, int64_t hv) {
  return static_cast<char *>(a.workspace) + (slot * a.heads_v + hv) * Chunk::BYTES;
}

}  // namespace kda::v4

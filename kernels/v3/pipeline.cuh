// Barriers and the memory plan of v3's recurrence: who waits for whom, and where everything lies.
#pragma once
#include <cstdint>

#include <cute/arch/copy_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/tensor.hpp>
#include <cutlass/arch/reg_reconfig.h>

#include "../v2/traits.cuh"

namespace kda::v3 {

using v2::ALL_LANES, v2::C, v2::Chunk, v2::K, v2::V, v2::shared_address;

// An mbarrier. Each phase ends when all arrivals have come and all promised bytes have landed; a waiter names the parity
// of the phase. CuTe has the same four functions, but without the "memory" that keeps a load behind the wait before it.
struct Barrier {
  uint32_t at;  // its address in shared memory

  __device__ void init(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
  }
  __device__ void arrive() const { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
  __device__ void arrive_expect_tx(uint32_t bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
  }
  __device__ void wait(uint32_t parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(at),
        "r"(parity)
        : "memory");
  }
};
// After init: bulk copies, which count on barriers too, must see them as the threads do.
__device__ inline void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Plain loads and stores of shared memory by address.
__device__ __forceinline__ void load_shared(uint32_t (&x)[4], uint32_t at) {
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void load_shared(float (&x)[2], uint32_t at) {
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(x[0]), "=f"(x[1]) : "r"(at) : "memory");
}
// Four 8x8 bf16 matrices, transposed on the way: the mirror of ldmatrix_trans.
__device__ __forceinline__ void stmatrix_trans(uint32_t at, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}

// A position in a ring of N slots. Slot and parity change without a division.
template <int N>
struct Turn {
  uint32_t slot = 0, parity = 0;
  __device__ void advance() {
    if (++slot == N) slot = 0, parity ^= 1;
  }
};

// WARPS math warps of ROWS_OF_16 x 16 value channels each, one warp that loads, one that stores.
template <int WARPS_, int ROWS_OF_16_, int BLOCKS_PER_SM_, int STAGES_>
struct Recur {
  static constexpr int WARPS = WARPS_, ROWS_OF_16 = ROWS_OF_16_, BLOCKS_PER_SM = BLOCKS_PER_SM_, STAGES = STAGES_;
  static constexpr int WARP_ROWS = 16 * ROWS_OF_16;
  static constexpr int SLAB = WARPS * WARP_ROWS;  // value channels of a block
  static constexpr int SLABS = V / SLAB;

  // The state of a whole head leaves loading and storing too many registers, and math too few. Then the math warps take
  // them over, which works by whole warpgroups: two idle warps fill up the one that loads and stores.
  static constexpr bool MOVES_REGISTERS = SLAB == V;
  static constexpr int THREADS = 32 * (WARPS + (MOVES_REGISTERS ? 4 : 2));
  static constexpr int COPY_REGISTERS = 32, MATH_REGISTERS = 224;
  static constexpr int LAUNCH_REGISTERS = 65536 / BLOCKS_PER_SM / THREADS / 8 * 8;
  static_assert(V % SLAB == 0, "slabs must tile the value channels");
  static_assert(!MOVES_REGISTERS || (WARPS % 4 == 0 && 32 * WARPS * MATH_REGISTERS + 128 * COPY_REGISTERS <= THREADS * LAUNCH_REGISTERS),
                "what some warps take, others must have given back");

  // V and O of a chunk, (token, value channel) -> bf16, as TMA lays out boxes of PANEL channels: rows of 128 or 64 bytes, their
  // 16-byte units XORed with bits of the row, so that the eight rows that ldmatrix and stmatrix touch at once lie in
  // different banks.
  static constexpr int PANEL = SLAB < 64 ? SLAB : 64, PANELS = SLAB / PANEL;
  using Panel = decltype(cute::composition(cute::Swizzle<PANEL == 64 ? 3 : 2, 3, 3>{},
                                           cute::Layout<cute::Shape<cute::Int<C>, cute::Int<PANEL>>, cute::Stride<cute::Int<PANEL>, cute::_1>>{}));
  using Rows = decltype(cute::tile_to_shape(Panel{}, cute::Shape<cute::Int<C>, cute::Int<SLAB>>{}));

  struct Shared {
    uint16_t v[STAGES][C * SLAB];  // O takes the place of V. First: the swizzle is taken from the address's low 10 bits
    unsigned char image[STAGES][Chunk::BYTES];
    float ones[K];  // the decay behind the last chunk
    // Of each stage: image and V have landed; every math warp has read them and written O; the copy engine has read O.
    uint64_t full[STAGES], done[STAGES], empty[STAGES];
  };
  static_assert(sizeof(Shared::v[0]) % 1024 == 0 && offsetof(Shared, image) % 256 == 0, "what swizzles count on");
  static_assert(BLOCKS_PER_SM * (sizeof(Shared) + 1024) <= 228 * 1024, "shared memory of an SM");
};

// A [C,K] tile of an image, (token, channel) -> bf16: row-major, 8 channels move together (3 low bits stay), and bits 3-5
// are XORed with the row (4 bits up). The same function as v2's tile_offset, in CuTe's words.
using ImageTile = decltype(cute::composition(cute::Swizzle<3, 3, 4>{},
                                             cute::Layout<cute::Shape<cute::Int<C>, cute::Int<K>>, cute::Stride<cute::Int<K>, cute::_1>>{}));
static_assert(2 * ImageTile{}(5, 24) == v2::tile_offset(5, 3) && 2 * ImageTile{}(12, 120) == v2::tile_offset(12, 15));

}  // namespace kda::v3

// Exercises of notebook 13 on the chip: a ring of stages between one warp that loads and two that use.
//
// Tile i of x (TILE numbers; the last one may have fewer) goes through stage i % STAGES of a ring in
// shared memory. Each stage has two mbarriers: full[stage] (the tile has landed) and empty[stage] (the
// tile has been used). The functions of kda_exercise.cuh are one instruction each:
//
//   mbarrier_init(b, count)             each phase of b takes `count` arrivals
//   fence_mbarrier_init()               bulk copies, too, know what this thread has initialised
//   mbarrier_arrive(b)                  one arrival
//   mbarrier_arrive_expect_tx(b, bytes) one arrival, and a promise of bytes
//   mbarrier_try_wait_parity(b, p)      true once the phase of parity p is over; false when it gave up
//                                       waiting: ask in a loop, while (!mbarrier_try_wait_parity(b, p)) {}
//   bulk_copy(to, from, bytes, b)       one thread starts a copy from global to shared memory; b counts the
//                                       bytes that have landed. Addresses and bytes: multiples of 16
#include "kda_exercise.cuh"

constexpr int STAGES = 3;  // of the ring
constexpr int TILE = 128;  // numbers in a tile
constexpr int WARPS = 2;   // that use the tiles; the warp behind them loads
constexpr int USERS = 32 * WARPS;

// exercise ring_parity: 2 points, 10 minutes, 4 lines
// hint 1: Direction. How often has the ring gone round before this tile? Everything but the stage follows from it.
// hint 2: The key identity: turn = tile / stages. The copy of the tile ends phase `turn` of full[stage]. The stage
//     is free when phase `turn - 1` of empty[stage] is over; and phase -1 has parity 1.
// hint 3: All but one line:
//     const int turn = tile / stages;
//     stage = tile % stages;
//     full = turn % 2;
//     empty = ...;
// why: Neither side ever tells the other where it is. Both count tiles, and the parity bit says whether the barrier
//     is still in the phase that this tile waits for.
/* Where a tile goes, and the parity of the phase that each side waits for.

   tile: 0, 1, 2, ... stages: of the ring. Sets stage, full (the parity that whoever uses the tile waits for
   on full[stage]) and empty (the parity that whoever loads it waits for on empty[stage]). A fresh barrier is
   in phase 0, and counts as having ended a phase of parity 1.

   Example: 3 stages, tile 4: the ring goes round a second time. stage 1, full 1, empty 0.
*/
__device__ void ring_parity(int tile, int stages, int &stage, uint32_t &full, uint32_t &empty) {
  // solution
  const int turn = tile / stages;
  stage = tile % stages;
  full = turn % 2;
  empty = 1 - turn % 2;
  // end solution
}

// Given: thread i asks about tile i. [tiles,3].
__global__ void try_ring_parity(int stages, int *answers) {
  int stage = -1;
  uint32_t full = 7, empty = 7;
  ring_parity(threadIdx.x, stages, stage, full, empty);
  answers[3 * threadIdx.x] = stage;
  answers[3 * threadIdx.x + 1] = full;
  answers[3 * threadIdx.x + 2] = empty;
}

// exercise producer_fills: 4 points, 20 minutes, 7 lines
// hint 1: Direction. Three calls a tile, in the order of the producer in the notebook. How many bytes has the last
//     tile?
// hint 2: The key identity: the bytes promised and the bytes copied are the same number,
//     4 * min(TILE, n - tile * TILE). And the first turn waits for parity 1.
// hint 3: All but one line:
//     for (int tile = 0; tile * TILE < n; ++tile) {
//       const int stage = tile % STAGES, turn = tile / STAGES;
//       const uint32_t bytes = ...;
//       while (!mbarrier_try_wait_parity(&empty[stage], 1 - turn % 2)) {}
//       mbarrier_arrive_expect_tx(&full[stage], bytes);
//       bulk_copy(ring[stage], x + tile * TILE, bytes, &full[stage]);
//     }
// why: One thread and three instructions keep the memory busy for the whole block: no register holds what is on its
//     way, and nobody waits for it but those who use it.
/* The loop of the thread that loads: all tiles of x, through the ring.

   x: [n] in global memory, n a multiple of 4. ring: shared memory. full, empty: STAGES mbarriers each, ready for
   use. full[stage] takes one arrival a phase, yours. One thread calls this.

   Example: n = 132: a tile of 128 numbers into stage 0, with a promise of 512 bytes on full[0], then one of 4
   numbers into stage 1, with a promise of 16 bytes on full[1].
*/
__device__ void producer_fills(const float *x, int n, float (&ring)[STAGES][TILE], uint64_t (&full)[STAGES],
                               uint64_t (&empty)[STAGES]) {
  // solution
  for (int tile = 0; tile * TILE < n; ++tile) {
    const int stage = tile % STAGES, turn = tile / STAGES;
    const uint32_t bytes = 4 * min(TILE, n - tile * TILE);
    while (!mbarrier_try_wait_parity(&empty[stage], 1 - turn % 2)) {}
    mbarrier_arrive_expect_tx(&full[stage], bytes);
    bulk_copy(ring[stage], x + tile * TILE, bytes, &full[stage]);
  }
  // end solution
}

// Given: thread 32 loads with your producer_fills; warp 0 copies each tile to y. Here every lane gives a stage back.
__global__ void try_producer_fills(const float *x, float *y, int n) {
  __shared__ __align__(16) float ring[STAGES][TILE];
  __shared__ uint64_t full[STAGES], empty[STAGES];
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) mbarrier_init(&full[stage], 1), mbarrier_init(&empty[stage], 32);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 32) producer_fills(x, n, ring, full, empty);
  if (threadIdx.x >= 32) return;
  uint32_t parity = 0;
  for (int first = 0; first < n; first += STAGES * TILE, parity ^= 1)
    for (int stage = 0; stage < STAGES && first + stage * TILE < n; ++stage) {
      while (!mbarrier_try_wait_parity(&full[stage], parity)) {}
      const int begin = first + stage * TILE, numbers = min(TILE, n - begin);
      for (int i = threadIdx.x; i < numbers; i += 32) y[begin + i] = ring[stage][i];
      mbarrier_arrive(&empty[stage]);
    }
}

// exercise consumer_uses: 4 points, 20 minutes, 7 lines
// hint 1: Direction. Wait, use, give back: as in the notebook. But here 64 threads use a tile, and empty[stage] takes one
//     arrival from each warp. When may lane 0 speak for its warp?
// hint 2: The key identity: thread u has the numbers u, u + USERS, ... of the tile, as far as the tile goes. After a
//     __syncwarp() all lanes of the warp have read theirs.
// hint 3: All but one line:
//     for (int tile = 0; tile * TILE < n; ++tile) {
//       const int stage = tile % STAGES, turn = tile / STAGES;
//       while (!mbarrier_try_wait_parity(&full[stage], turn % 2)) {}
//       for (int i = threadIdx.x; i < TILE && tile * TILE + i < n; i += USERS) y[tile * TILE + i] = ...;
//       __syncwarp();
//       if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[stage]);
//     }
// why: One arrival a warp, not one a thread: an arrival is a trip to shared memory, and 32 of them wait for each
//     other there. The math warps of v3 do the same, with __syncwarp() for the same reason.
/* The loop of the threads that use the tiles: y = factor * x.

   The USERS threads 0 to 63 (two whole warps) call this together. Tiles of x come through the ring, [STAGES,TILE];
   the last one has fewer numbers when TILE does not divide n. full[stage] ends a phase when a tile has landed;
   empty[stage] takes one arrival a phase from each of the two warps. y: [n] in global memory.

   Example: n = 4, factor 2, and 1, 2, 3, 4 landed in stage 0: y = 2, 4, 6, 8, and two arrivals on empty[0].
*/
__device__ void consumer_uses(float (&ring)[STAGES][TILE], uint64_t (&full)[STAGES], uint64_t (&empty)[STAGES], int n,
                              float factor, float *y) {
  // solution
  for (int tile = 0; tile * TILE < n; ++tile) {
    const int stage = tile % STAGES, turn = tile / STAGES;
    while (!mbarrier_try_wait_parity(&full[stage], turn % 2)) {}
    for (int i = threadIdx.x; i < TILE && tile * TILE + i < n; i += USERS) y[tile * TILE + i] = factor * ring[stage][i];
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[stage]);
  }
  // end solution
}

// Given: a warp fills the ring by hand, without bulk copies, for your consumer_uses.
__global__ void try_consumer_uses(const float *x, float *y, int n, float factor) {
  __shared__ float ring[STAGES][TILE];
  __shared__ uint64_t full[STAGES], empty[STAGES];
  if (threadIdx.x == 0)
    for (int stage = 0; stage < STAGES; ++stage) mbarrier_init(&full[stage], 32), mbarrier_init(&empty[stage], WARPS);
  __syncthreads();
  if (threadIdx.x < USERS) {
    consumer_uses(ring, full, empty, n, factor, y);
    return;
  }
  const int lane = threadIdx.x % 32;
  uint32_t parity = 1;
  for (int first = 0; first < n; first += STAGES * TILE, parity ^= 1)
    for (int stage = 0; stage < STAGES && first + stage * TILE < n; ++stage) {
      while (!mbarrier_try_wait_parity(&empty[stage], parity)) {}
      const int begin = first + stage * TILE, numbers = min(TILE, n - begin);
      for (int i = lane; i < numbers; i += 32) ring[stage][i] = x[begin + i];
      mbarrier_arrive(&full[stage]);
    }
}

// exercise pipelined_scale: 5 points, 40 minutes, 26 lines
// hint 1: Direction. Thread 0 prepares the barriers, and everybody waits for that, once. Then the block falls apart into
//     roles: the first two warps use tiles, one thread of the third loads them, nobody meets at __syncthreads() again.
// hint 2: The key identity: two counters. The block's tiles are blockIdx.x, blockIdx.x + gridDim.x, ...; stage and
//     parity come from how many of them it has had, 0, 1, 2, ..., never from the tile's own number.
// hint 3: All but the two loops, which are those of producer_fills and consumer_uses with `turn` beside `tile`:
//     if (threadIdx.x == 0) {
//       for (int s = 0; s < STAGES; ++s) mbarrier_init(&full[s], 1), mbarrier_init(&empty[s], WARPS);
//       fence_mbarrier_init();
//     }
//     __syncthreads();
//     if (threadIdx.x == USERS) for (int tile = blockIdx.x, count = 0; tile * TILE < n; tile += gridDim.x, ++count) ...
//     if (threadIdx.x < USERS) for (int tile = blockIdx.x, count = 0; tile * TILE < n; tile += gridDim.x, ++count) ...
// why: This is the skeleton of v3's second kernel: barriers for each stage, one __syncthreads(), roles. What comes on
//     top there is a third role that stores, and much more to do with a tile.
/* y = factor * x, with a producer and consumers over a ring of stages.

   x, y: [n], n a multiple of 4. Blocks of USERS + 32 threads, any number of blocks: block b has the tiles b,
   b + gridDim.x, b + 2 gridDim.x, ... of TILE numbers; the last tile of all may have fewer. The warps 0 and 1 use
   the tiles, one thread of warp 2 loads them by bulk copies. The ring and its barriers are yours to declare:
   `__shared__ __align__(16) float ring[STAGES][TILE];` and uint64_t.

   Example: n = 260, 2 blocks, factor 2: block 0 has the numbers 0 to 127 and 256 to 259, block 1 has 128 to 255.
   y[i] = 2 x[i] everywhere.
*/
__global__ void pipelined_scale(const float *x, float *y, int n, float factor) {
  // solution
  __shared__ __align__(16) float ring[STAGES][TILE];
  __shared__ uint64_t full[STAGES], empty[STAGES];
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) mbarrier_init(&full[s], 1), mbarrier_init(&empty[s], WARPS);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == USERS) {
    for (int tile = blockIdx.x, count = 0; tile * TILE < n; tile += gridDim.x, ++count) {
      const int s = count % STAGES, turn = count / STAGES;
      const uint32_t bytes = 4 * min(TILE, n - tile * TILE);
      while (!mbarrier_try_wait_parity(&empty[s], 1 - turn % 2)) {}
      mbarrier_arrive_expect_tx(&full[s], bytes);
      bulk_copy(ring[s], x + tile * TILE, bytes, &full[s]);
    }
  }
  if (threadIdx.x < USERS) {
    for (int tile = blockIdx.x, count = 0; tile * TILE < n; tile += gridDim.x, ++count) {
      const int s = count % STAGES, turn = count / STAGES;
      while (!mbarrier_try_wait_parity(&full[s], turn % 2)) {}
      for (int i = threadIdx.x; i < TILE && tile * TILE + i < n; i += USERS) y[tile * TILE + i] = factor * ring[s][i];
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[s]);
    }
  }
  // end solution
}

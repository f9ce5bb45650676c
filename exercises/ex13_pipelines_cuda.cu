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

// ex13.ring_parity: 2 points, 10 minutes, about 4 lines
// A hint: kda-lab hint ex13.ring_parity     Your verdict: kda-lab grade ex13
/* Where a tile goes, and the parity of the phase that each side waits for.

   tile: 0, 1, 2, ... stages: of the ring. Sets stage, full (the parity that whoever uses the tile waits for
   on full[stage]) and empty (the parity that whoever loads it waits for on empty[stage]). A fresh barrier is
   in phase 0, and counts as having ended a phase of parity 1.

   Example: 3 stages, tile 4: the ring goes round a second time. stage 1, full 1, empty 0.
*/
__device__ void ring_parity(int tile, int stages, int &stage, uint32_t &full, uint32_t &empty) {
  NOT_ATTEMPTED("ex13.ring_parity");
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

// ex13.producer_fills: 4 points, 20 minutes, about 7 lines
// A hint: kda-lab hint ex13.producer_fills     Your verdict: kda-lab grade ex13
/* The loop of the thread that loads: all tiles of x, through the ring.

   x: [n] in global memory, n a multiple of 4. ring: shared memory. full, empty: STAGES mbarriers each, ready for
   use. full[stage] takes one arrival a phase, yours. One thread calls this.

   Example: n = 132: a tile of 128 numbers into stage 0, with a promise of 512 bytes on full[0], then one of 4
   numbers into stage 1, with a promise of 16 bytes on full[1].
*/
__device__ void producer_fills(const float *x, int n, float (&ring)[STAGES][TILE], uint64_t (&full)[STAGES],
                               uint64_t (&empty)[STAGES]) {
  NOT_ATTEMPTED("ex13.producer_fills");
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

// ex13.consumer_uses: 4 points, 20 minutes, about 7 lines
// A hint: kda-lab hint ex13.consumer_uses     Your verdict: kda-lab grade ex13
/* The loop of the threads that use the tiles: y = factor * x.

   The USERS threads 0 to 63 (two whole warps) call this together. Tiles of x come through the ring, [STAGES,TILE];
   the last one has fewer numbers when TILE does not divide n. full[stage] ends a phase when a tile has landed;
   empty[stage] takes one arrival a phase from each of the two warps. y: [n] in global memory.

   Example: n = 4, factor 2, and 1, 2, 3, 4 landed in stage 0: y = 2, 4, 6, 8, and two arrivals on empty[0].
*/
__device__ void consumer_uses(float (&ring)[STAGES][TILE], uint64_t (&full)[STAGES], uint64_t (&empty)[STAGES], int n,
                              float factor, float *y) {
  NOT_ATTEMPTED("ex13.consumer_uses");
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

// ex13.pipelined_scale: 5 points, 40 minutes, about 26 lines
// A hint: kda-lab hint ex13.pipelined_scale     Your verdict: kda-lab grade ex13
/* y = factor * x, with a producer and consumers over a ring of stages.

   x, y: [n], n a multiple of 4. Blocks of USERS + 32 threads, any number of blocks: block b has the tiles b,
   b + gridDim.x, b + 2 gridDim.x, ... of TILE numbers; the last tile of all may have fewer. The warps 0 and 1 use
   the tiles, one thread of warp 2 loads them by bulk copies. The ring and its barriers are yours to declare:
   `__shared__ __align__(16) float ring[STAGES][TILE];` and uint64_t.

   Example: n = 260, 2 blocks, factor 2: block 0 has the numbers 0 to 127 and 256 to 259, block 1 has 128 to 255.
   y[i] = 2 x[i] everywhere.
*/
__global__ void pipelined_scale(const float *x, float *y, int n, float factor) {
  NOT_ATTEMPTED("ex13.pipelined_scale");
}

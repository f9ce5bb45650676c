// What do bulk copies of single rows (256 bytes) cost, in and out?
//
// Why it decides: a tile of 64 tokens of one head is 64 rows of 256 bytes, 24 KB apart at H = 96. Tensor-map copies need the host and
// would write over the next sequence at a tail; plain bulk copies of rows do neither.
// Method: 132 blocks walk over a [8192, 96, 128] bf16 tensor, tile by tile of 64 rows, four tiles under way. Stores: 64 threads issue one
// bulk copy of a row each; or 256 threads store 16 bytes each, 4 times; or, for comparison, the tile is 16 KB in one piece. Loads: bulk rows,
// 16-byte cp.async, one piece. The result is read back and compared.
// Prediction: 201 MB. Loads by any means at 4.2 TB/s of HBM; stores at 3.5 TB/s, a little less, since
// writes interrupt each other more. Rows cost nothing: 64 of them at 4 cycles of the copy engine are 256 cycles a tile, 64 B a cycle, 14 TB/s over 132 SMs.
#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

constexpr int T = 8192, H = 96, ROW = 256, ROWS = 64, TILE = ROW * ROWS, TILES = T / ROWS * H, RING = 4;

enum Way { BULK_ROWS, VECTORS, ONE_PIECE };

// Tile i: tokens 64 (i / H) .., head i % H; or, in one piece, bytes i * TILE ..
__device__ __forceinline__ int64_t tile_at(int i, bool one_piece) { return one_piece ? int64_t(i) * TILE : (int64_t(i / H) * ROWS * H + i % H) * ROW; }

__global__ void __launch_bounds__(256) store(unsigned char *to, Way way) {
  extern __shared__ __align__(1024) unsigned char shared[];
  for (int i = threadIdx.x; i < RING * TILE / 4; i += 256) reinterpret_cast<uint32_t *>(shared)[i] = i % (TILE / 4);
  async_fence();
  __syncthreads();
  int n = 0;
  for (int i = blockIdx.x; i < TILES; i += gridDim.x, ++n) {
    const uint32_t from = shared_address(shared) + n % RING * TILE;
    unsigned char *tile = to + tile_at(i, way == ONE_PIECE);
    if (way == BULK_ROWS) {
      if (threadIdx.x < ROWS) {
        bulk_wait_read<RING - 1>();
        bulk_store(tile + int64_t(threadIdx.x) * H * ROW, from + threadIdx.x * ROW, ROW);
        bulk_commit();
      }
    } else if (way == ONE_PIECE) {
      if (threadIdx.x == 0) {
        bulk_wait_read<RING - 1>();
        bulk_store(tile, from, TILE);
        bulk_commit();
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int r = threadIdx.x / 16 + 16 * j, unit = threadIdx.x % 16;
        *reinterpret_cast<uint4 *>(tile + int64_t(r) * H * ROW + unit * 16) = *reinterpret_cast<uint4 *>(shared + n % RING * TILE + r * ROW + unit * 16);
      }
    }
  }
  bulk_wait<0>();
}

__global__ void __launch_bounds__(256) load(const unsigned char *from, Way way, unsigned long long *sums) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) uint64_t landed[RING];
  if (threadIdx.x < RING) barrier_init(shared_address(landed + threadIdx.x), way == BULK_ROWS ? ROWS : 1);
  barrier_init_fence();
  __syncthreads();
  const int mine = (TILES - 1 - static_cast<int>(blockIdx.x)) / static_cast<int>(gridDim.x) + 1;
  auto fetch = [&](int n) {
    if (n < mine) {
      const unsigned char *tile = from + tile_at(blockIdx.x + n * gridDim.x, way == ONE_PIECE);
      const uint32_t to = shared_address(shared) + n % RING * TILE, barrier = shared_address(landed + n % RING);
      if (way == BULK_ROWS && threadIdx.x < ROWS) {
        barrier_expect(barrier, ROW);
        bulk_load(to + threadIdx.x * ROW, tile + int64_t(threadIdx.x) * H * ROW, ROW, barrier);
      } else if (way == ONE_PIECE && threadIdx.x == 0) {
        barrier_expect(barrier, TILE);
        bulk_load(to, tile, TILE, barrier);
      } else if (way == VECTORS) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int r = threadIdx.x / 16 + 16 * j, unit = threadIdx.x % 16;
          cp_async(to + r * ROW + unit * 16, tile + int64_t(r) * H * ROW + unit * 16);
        }
      }
    }
    if (way == VECTORS) cp_async_commit();
  };
  for (int n = 0; n < RING - 1; ++n) fetch(n);
  unsigned long long sum = 0;
  for (int n = 0; n < mine; ++n) {
    if (way == VECTORS) cp_async_wait<RING - 2>();
    else barrier_wait(shared_address(landed + n % RING), n / RING & 1);
    __syncthreads();
    sum += *reinterpret_cast<uint32_t *>(shared + n % RING * TILE + threadIdx.x * 64);
    fetch(n + RING - 1);  // into the stage that was read a step ago, before the barrier above
  }
  sums[blockIdx.x * 256 + threadIdx.x] = sum;
}

int main() {
  const size_t bytes = size_t(TILES) * TILE;
  unsigned char *tensor = device<unsigned char>(bytes);
  const int blocks = sms();
  unsigned long long *sums = device<unsigned long long>(blocks * 256);
  allow_shared(store, RING * TILE);
  allow_shared(load, RING * TILE);
  const char *names[] = {"bulk rows of 256 bytes", "16 bytes a thread", "16 KB in one piece"};
  for (Way way : {ONE_PIECE, VECTORS, BULK_ROWS}) {  // rows last: the loads below read what they left
    LAB_CHECK(cudaMemset(tensor, 0xff, bytes));
    const double ms = milliseconds([&] { store<<<blocks, 256, RING * TILE>>>(tensor, way); });
    const auto x = host(reinterpret_cast<uint32_t *>(tensor), bytes / 4);
    for (size_t i = 0; i < bytes / 4; i += 61) {
      const size_t at = way == ONE_PIECE ? i % (TILE / 4) : i / (H * ROW / 4) % ROWS * (ROW / 4) + i % (ROW / 4);
      expect(x[i] == at, "stored rows");
    }
    char name[96];
    std::snprintf(name, sizeof name, "store, %s", names[way]);
    row(name, bytes / ms / 1e9, "TB/s", 3.5);
  }
  for (Way way : {ONE_PIECE, VECTORS, BULK_ROWS}) {
    const double ms = milliseconds([&] { load<<<blocks, 256, RING * TILE>>>(tensor, way, sums); });
    const auto x = host(sums, blocks * 256);
    if (way != ONE_PIECE)
      for (int i = 0; i < blocks * 256; ++i)
        expect(x[i] == static_cast<unsigned long long>((TILES - 1 - i / 256) / blocks + 1) * (i % 256 * 16), "loaded rows");
    char name[96];
    std::snprintf(name, sizeof name, "load, %s", names[way]);
    row(name, bytes / ms / 1e9, "TB/s", 4.2);
  }
}

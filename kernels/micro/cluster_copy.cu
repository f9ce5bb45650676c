// How fast do two blocks of a cluster exchange tiles, and how fast does one load reach both?
//
// Why it decides: two blocks could share the preparation of a head and split its value channels: either each prepares half and sends it to
// the other (K~, Q~, K-: 48 KB a chunk), or both take one load of an image (multicast).
// Method: clusters of 2 on all SMs, both directions at once. (a) one bulk copy of 16 bytes, or 16 KB, shared memory to shared memory,
// waited for at the other end and answered: round trip / 2. (b) 16 KB tiles, 4 under way: bytes a cycle that an SM receives. (c) 256 threads
// store 16 bytes each into the other's memory. (d) images of 66,048 bytes from L2 (two a cluster, again and again), each block loading its own copy; or each
// loading one half for both.
// Prediction: latency of the SM-to-SM network about 200 cycles, of a bulk copy about 500 to start and land: 700; 16 KB at 16 B a cycle: +1,024. (b), (c):
// published measurements of the network add up to 3.3 TB/s on 132 SMs: 14 B a cycle and SM at 1.755 GHz. (d) L2 gives an SM about 24 B a
// cycle when all ask (5.5 TB/s): alone 24; multicast needs half the requests: 40.
#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

constexpr int TILE = 16 * 1024, RING = 4, TILES = 256, IMAGE = 66048, IMAGES = 64;

struct Shared {
  unsigned char in[RING * TILE], out[TILE];
  alignas(8) uint64_t landed[RING], free[RING];
};

// One copy there, one back.
__global__ void __launch_bounds__(32) __cluster_dims__(2) ping_pong(int bytes, int *wrong, long long *clocks) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared &sm = *reinterpret_cast<Shared *>(raw);
  const int rank = cluster_rank();
  const uint32_t in = shared_address(sm.in), out = shared_address(sm.out), landed = shared_address(sm.landed);
  if (threadIdx.x == 0) {
    barrier_init(landed, 1);
    barrier_init_fence();
    barrier_expect(landed, bytes);
  }
  cluster_sync();
  const long long begin = clock64();
  if (threadIdx.x == 0) {
    for (int i = 0; i < TILES; ++i) {
      if (rank == 1) barrier_wait_cluster(landed, i & 1);
      if (rank == 1) barrier_expect(landed, bytes);
      *reinterpret_cast<volatile uint32_t *>(sm.out + bytes - 4) = i;
      async_fence();
      bulk_send(in_block(in, rank ^ 1), out, bytes, in_block(landed, rank ^ 1));
      if (rank == 0) barrier_wait_cluster(landed, i & 1);
      if (rank == 0) barrier_expect(landed, bytes);
      if (*reinterpret_cast<volatile uint32_t *>(sm.in + bytes - 4) != i) ++*wrong;
    }
    clocks[blockIdx.x] = clock64() - begin;
  }
  cluster_sync();
}

// Tiles both ways at once: thread 0 sends, thread 32 receives and frees.
__global__ void __launch_bounds__(64) __cluster_dims__(2) tiles(int *wrong, long long *clocks) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared &sm = *reinterpret_cast<Shared *>(raw);
  const int other = cluster_rank() ^ 1;
  for (int i = threadIdx.x; i < TILE / 4; i += 64) reinterpret_cast<uint32_t *>(sm.out)[i] = i;
  if (threadIdx.x == 0) {
    for (int r = 0; r < RING; ++r) barrier_init(shared_address(sm.landed + r), 1), barrier_init(shared_address(sm.free + r), 1);
    barrier_init_fence();
  }
  async_fence();
  cluster_sync();
  const long long begin = clock64();
  if (threadIdx.x == 0) {
    for (int i = 0; i < TILES; ++i) {
      if (i >= RING) barrier_wait_cluster(shared_address(sm.free + i % RING), (i / RING - 1) & 1);
      bulk_send(in_block(shared_address(sm.in) + i % RING * TILE, other), shared_address(sm.out), TILE,
                in_block(shared_address(sm.landed + i % RING), other));
    }
  } else if (threadIdx.x == 32) {
    for (int r = 0; r < RING; ++r) barrier_expect(shared_address(sm.landed + r), TILE);
    for (int i = 0; i < TILES; ++i) {
      barrier_wait_cluster(shared_address(sm.landed + i % RING), i / RING & 1);
      if (*reinterpret_cast<volatile uint32_t *>(sm.in + i % RING * TILE + TILE - 4) != TILE / 4 - 1) ++*wrong;
      if (i + RING < TILES) barrier_expect(shared_address(sm.landed + i % RING), TILE);
      barrier_arrive_in_block(shared_address(sm.free + i % RING), other);
    }
    clocks[blockIdx.x] = clock64() - begin;
  }
  cluster_sync();
}

__global__ void __launch_bounds__(256) __cluster_dims__(2) stores(int *wrong, long long *clocks) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared &sm = *reinterpret_cast<Shared *>(raw);
  const uint32_t to = in_block(shared_address(sm.in) + threadIdx.x * 16, cluster_rank() ^ 1);
  cluster_sync();
  const long long begin = clock64();
  for (int i = 0; i < TILES; ++i)
#pragma unroll
    for (int j = 0; j < TILE / 4096; ++j)
      asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(to + i % RING * TILE + j * 4096), "r"(i) : "memory");
  cluster_sync();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - begin;
  if (reinterpret_cast<uint32_t *>(sm.in)[threadIdx.x * 4] != TILES - RING) ++*wrong;
}

__global__ void __launch_bounds__(32) __cluster_dims__(2) loads(const unsigned char *images, bool multicast, int *wrong, long long *clocks) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) uint64_t landed[3], free[3];
  const int rank = cluster_rank();
  constexpr int STAGES = 3;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) barrier_init(shared_address(landed + s), 1), barrier_init(shared_address(free + s), 2);
    barrier_init_fence();
  }
  cluster_sync();
  const long long begin = clock64();
  if (threadIdx.x == 0) {
    auto fetch = [&](int i) {
      const int s = i % STAGES;
      const unsigned char *from = images + (int64_t(blockIdx.x / 2) * 2 + i % 2) * IMAGE;
      barrier_expect(shared_address(landed + s), IMAGE);
      if (multicast) {
        // Both blocks have emptied the stage, and each half goes to both: whoever copies must know that of the other.
        barrier_arrive_in_block(shared_address(free + s), 0);
        barrier_arrive_in_block(shared_address(free + s), 1);
        barrier_wait_cluster(shared_address(free + s), i / STAGES & 1);
        const int at = rank * (IMAGE / 2);
        bulk_load_multicast(shared_address(shared) + s * IMAGE + at, from + at, IMAGE / 2, shared_address(landed + s), 3);
      } else {
        bulk_load(shared_address(shared) + s * IMAGE, from, IMAGE, shared_address(landed + s));
      }
    };
    for (int i = 0; i < STAGES; ++i) fetch(i);
    for (int i = 0; i < IMAGES; ++i) {
      barrier_wait_cluster(shared_address(landed + i % STAGES), i / STAGES & 1);
      const uint32_t *image = reinterpret_cast<uint32_t *>(shared + i % STAGES * IMAGE);
      const uint32_t stamp = blockIdx.x / 2 * 2 + i % 2;
      if (image[0] != stamp || image[IMAGE / 4 - 1] != stamp) ++*wrong;
      if (i + STAGES < IMAGES) fetch(i + STAGES);
    }
    clocks[blockIdx.x] = clock64() - begin;
  }
  cluster_sync();
}

int main() {
  const int blocks = sms() / 2 * 2;
  int *wrong = device<int>(1);
  auto right = [&](const char *what) { expect(host(wrong, 1)[0] == 0, what); };
  const int small = sizeof(Shared) + 40 * 1024;  // one block an SM
  allow_shared(ping_pong, small);
  allow_shared(tiles, small);
  allow_shared(stores, small);
  allow_shared(loads, 3 * IMAGE);
  for (int bytes : {16, TILE}) {
    const double c = cycles(blocks, [&](long long *clocks) { ping_pong<<<blocks, 32, small>>>(bytes, wrong, clocks); });
    right("a tile sent");
    row(bytes == 16 ? "bulk copy to the other block, 16 bytes" : "bulk copy to the other block, 16 KB", c / (2 * TILES), "cycles", bytes == 16 ? 700 : 1724);
  }
  const double t = cycles(blocks, [&](long long *clocks) { tiles<<<blocks, 64, small>>>(wrong, clocks); });
  right("tiles sent");
  row("16 KB tiles both ways, 4 under way", double(TILES) * TILE / t, "B a cycle", 14);
  const double s = cycles(blocks, [&](long long *clocks) { stores<<<blocks, 256, small>>>(wrong, clocks); });
  right("stores to the other block");
  row("16-byte stores both ways", double(TILES) * TILE / s, "B a cycle", 14);
  std::vector<unsigned char> x(size_t(blocks) * IMAGE);
  for (int i = 0; i < blocks; ++i)
    for (int at : {0, IMAGE - 4}) *reinterpret_cast<uint32_t *>(&x[size_t(i) * IMAGE + at]) = i;
  const unsigned char *images = device(x);
  for (bool multicast : {false, true}) {
    const double c = cycles(blocks, [&](long long *clocks) { loads<<<blocks, 32, 3 * IMAGE>>>(images, multicast, wrong, clocks); });
    right("images loaded");
    row(multicast ? "images from L2, halves to both blocks" : "images from L2, each its own", double(IMAGES) * IMAGE / c, "B a cycle", multicast ? 40 : 24);
  }
}

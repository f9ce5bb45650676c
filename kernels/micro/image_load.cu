// How fast do chunk images of 66,048 bytes come in, and how many stages does that take?
//
// Why it decides: the recurrence of a chunk of 64 reads one image (1,032 bytes a token and head) a step; three stages are 198 KB of the
// 227 KB that a block may have.
// Method: one block an SM, one thread issues one cp.async.bulk an image into the next free stage; a stage is free `work` cycles after
// its image has landed (0: at once; 1,700: about a chunk of the recurrence). Images of one step lie side by side, as v4's do. From HBM:
// 64 images a block, read once. From L2: 2 images a block, again and again. A word of each image is checked.
// Prediction: HBM gives 4.2 TB/s read. An image's latency alone is about 0.8 us + 66,048 B at 64 B a cycle (0.58 us) = 1.4 us or 47 GB/s
// an SM for each stage: 1 stage 96 SMs 4.5, 132 SMs 6.2 TB/s, so HBM is the limit at any number of stages; L2 is it at 5.5 TB/s.
// With 1,700 cycles (0.97 us at 1.755 GHz) of work: 1 stage 66,048 B each 2.4 us (96 SMs: 2.7, 132: 3.7 TB/s), 2 and 3 stages as
// without work (66,048 B each 0.97 us is 6.5 TB/s on 96 SMs, more than HBM gives).
#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

constexpr int BYTES = 66048, IMAGES = 64;

__global__ void load(const unsigned char *from, int stages, int distinct, int work, unsigned long long *sums) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) uint64_t landed[3];
  if (threadIdx.x) return;
  for (int s = 0; s < stages; ++s) barrier_init(shared_address(landed + s), 1);
  barrier_init_fence();
  auto fetch = [&](int i) {
    const uint32_t barrier = shared_address(landed + i % stages);
    barrier_expect(barrier, BYTES);
    bulk_load(shared_address(shared) + i % stages * BYTES, from + (static_cast<int64_t>(i % distinct) * gridDim.x + blockIdx.x) * BYTES, BYTES, barrier);
  };
  for (int i = 0; i < stages; ++i) fetch(i);
  unsigned long long sum = 0;
  for (int i = 0; i < IMAGES; ++i) {
    barrier_wait(shared_address(landed + i % stages), i / stages & 1);
    sum += *reinterpret_cast<uint32_t *>(shared + i % stages * BYTES + BYTES - 4);
    const long long until = clock64() + work;
    if (work)
      while (clock64() < until) {}
    if (i + stages < IMAGES) fetch(i + stages);
  }
  sums[blockIdx.x] = sum;
}

__global__ void fill(uint32_t *words, int64_t images) {
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < images; i += gridDim.x * blockDim.x) words[(i + 1) * (BYTES / 4) - 1] = i;
}

int main() {
  const int all = sms();
  unsigned char *images = device<unsigned char>(static_cast<size_t>(all) * IMAGES * BYTES);
  unsigned long long *sums = device<unsigned long long>(all);
  fill<<<64, 256>>>(reinterpret_cast<uint32_t *>(images), static_cast<int64_t>(all) * IMAGES);
  allow_shared(load, 3 * BYTES);
  auto measure = [&](int blocks, int stages, bool hbm, int work, double predicted) {
    const int distinct = hbm ? IMAGES : 2;
    const double ms = milliseconds([&] { load<<<blocks, 32, 3 * BYTES>>>(images, stages, distinct, work, sums); }, 5);
    const auto got = host(sums, blocks);
    for (int b = 0; b < blocks; ++b) {
      unsigned long long right = 0;
      for (int i = 0; i < IMAGES; ++i) right += static_cast<uint32_t>(i % distinct * blocks + b);
      expect(got[b] == right, "last words of the images");
    }
    char name[96];
    std::snprintf(name, sizeof name, "%s, %d SMs, %d stage%s%s", hbm ? "HBM" : "L2", blocks, stages, stages > 1 ? "s" : "", work ? ", 1700 cycles of work" : "");
    row(name, double(blocks) * IMAGES * BYTES / ms / 1e9, "TB/s", predicted);
  };
  for (int blocks : {96, all})
    for (int stages : {1, 2, 3}) measure(blocks, stages, true, 0, 4.2);
  for (int blocks : {96, all})
    for (int stages : {1, 2, 3}) measure(blocks, stages, true, 1700, stages == 1 ? (blocks == 96 ? 2.7 : 3.7) : 4.2);
  for (int stages : {1, 2, 3}) measure(all, stages, false, 0, 5.5);
}

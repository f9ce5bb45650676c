// What does handing a chunk image from one block to another through L2 cost?
//
// Why it decides: the third way between two kernels (the image travels to HBM and back) and one fused block: blocks that prepare and
// blocks that run the recurrence side by side, with a ring of images that never leaves L2.
// Method: blocks in pairs on different SMs. (a) a flag there and back again by st.release / ld.acquire. (b) images of 66,048 bytes: the
// producer sends one from shared memory by a bulk store, waits until it is visible, raises a flag; the consumer polls, loads it in bulk, checks
// its stamp, and frees the slot. Rings of 2 and 8 slots. 66 pairs use the whole machine.
// Prediction: L2 latency about 270 cycles; a flag costs a store's way and a poll's way and back, 700 one way, 1,400 a round trip. An image: its
// store 66,048 B / 64 B a cycle = 1,032 cycles + 600, flag 700, load 1,032 + 600: 4,000 cycles in a row; with a ring the slower side counts, store and
// wait: 1,632 cycles + flag 300 = 1,900. 66 pairs: 66 x 66,048 B a 1.08 us = 4.0 TB/s written and as much read, under L2's 5.5: 2,200 cycles expected.
#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

constexpr int BYTES = 66048, IMAGES = 128, TURNS = 256;

struct Slot {
  uint32_t full, padding0[31];   // images that have stood in this slot
  uint32_t empty, padding1[31];  // images of it that have been taken
};

__device__ __forceinline__ void raise(uint32_t *flag, uint32_t value) { asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory"); }
__device__ __forceinline__ void wait_for(uint32_t *flag, uint32_t value) {
  for (int tries = 0;; ++tries) {
    uint32_t now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(flag) : "memory");
    if (now >= value) return;
    if (tries > 1 << 22) __trap();
  }
}
__device__ __forceinline__ void all_proxies() { asm volatile("fence.proxy.async;" ::: "memory"); }

__global__ void flags(Slot *slots, long long *clocks) {
  if (threadIdx.x) return;
  Slot &slot = slots[blockIdx.x / 2];
  const long long begin = clock64();
  for (uint32_t i = 1; i <= TURNS; ++i) {
    if (blockIdx.x % 2 == 0) {
      raise(&slot.full, i);
      wait_for(&slot.empty, i);
    } else {
      wait_for(&slot.full, i);
      raise(&slot.empty, i);
    }
  }
  clocks[blockIdx.x] = clock64() - begin;
}

__global__ void images(unsigned char *rings, Slot *slots, int depth, int *wrong, long long *clocks) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) uint64_t landed;
  if (threadIdx.x) return;
  const int pair = blockIdx.x / 2;
  const uint32_t at = shared_address(shared), barrier = shared_address(&landed);
  barrier_init(barrier, 1);
  barrier_init_fence();
  volatile uint32_t *first = reinterpret_cast<uint32_t *>(shared), *last = reinterpret_cast<uint32_t *>(shared + BYTES - 4);
  const long long begin = clock64();
  for (int i = 0; i < IMAGES; ++i) {
    unsigned char *image = rings + (int64_t(pair) * depth + i % depth) * BYTES;
    Slot &slot = slots[pair * depth + i % depth];
    const uint32_t round = i / depth + 1;
    if (blockIdx.x % 2 == 0) {
      *first = *last = i;
      async_fence();
      wait_for(&slot.empty, round - 1);
      bulk_store(image, at, BYTES);
      bulk_commit();
      bulk_wait<0>();
      all_proxies();  // the bulk store happened in the async proxy, the flag is raised in the generic one
      raise(&slot.full, round);
    } else {
      wait_for(&slot.full, round);
      all_proxies();
      barrier_expect(barrier, BYTES);
      bulk_load(at, image, BYTES, barrier);
      barrier_wait(barrier, i & 1);
      if (*first != i || *last != i) ++*wrong;
      raise(&slot.empty, round);
    }
  }
  clocks[blockIdx.x] = clock64() - begin;
}

int main() {
  const int pairs = sms() / 2, most = 8;
  Slot *slots = device<Slot>(pairs * most);
  int *wrong = device<int>(1);
  unsigned char *rings = device<unsigned char>(size_t(pairs) * most * BYTES);
  auto clear = [&] { LAB_CHECK(cudaMemset(slots, 0, sizeof(Slot) * pairs * most)); };
  const double turn = cycles(2 * pairs, [&](long long *clocks) { clear(); flags<<<2 * pairs, 32>>>(slots, clocks); });
  row("flag round trip", turn / TURNS, "cycles", 1400);
  auto measure = [&](const char *name, int used, int depth, double predicted) {
    // 160 KB of shared memory: one block an SM
    const double c = cycles(2 * used, [&](long long *clocks) { clear(); images<<<2 * used, 32, 160 * 1024>>>(rings, slots, depth, wrong, clocks); });
    expect(host(wrong, 1)[0] == 0, "stamps of the images");
    row(name, c / IMAGES, "cycles", predicted);
  };
  allow_shared(images, 160 * 1024);
  measure("an image, 1 pair, ring of 1", 1, 1, 4000);
  measure("an image, 1 pair, ring of 2", 1, 2, 1900);
  measure("an image, 66 pairs, ring of 2", pairs, 2, 2200);
  measure("an image, 66 pairs, ring of 8", pairs, 8, 2200);
}

// How fast is a wgmma that takes A from registers, by its n?
//
// Why it decides: the state lives in registers as S^T, so all its products are RS wgmmas whose n is the number of tokens (K~ S, Q~ S:
// n = chunk) or of channels (K-^T U: n = 128). If a small n loses rate, chunks of 16 pay for it.
// Method: one block an SM, 1, 2 or 4 warpgroups, each with its own accumulators; batches of 8 wgmmas on one accumulator, the next
// batch issued while the last is under way; clock cycles of a block / wgmmas of the SM. All operands are 1, so the sum is known.
// Prediction: 4,096 FLOP a cycle and SM (989 TFLOP/s / 132 SMs / 1.83 GHz) make m64nNk16, 2048 N FLOP, N / 2 cycles. A is 64 x 16 bf16 =
// 2 KB of registers; if it streams like shared memory, 128 B a cycle, it takes 16 cycles, so n = 16 runs at half rate: max(16, N / 2).
#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

constexpr int BATCH = 8, BATCHES = 256;

template <int N, int TRANSPOSED>
__global__ void __launch_bounds__(512) rate(long long *clocks, float *sums) {
  extern __shared__ __align__(1024) unsigned char shared[];
  for (int i = threadIdx.x; i < 16 * 1024 / 4; i += blockDim.x) reinterpret_cast<uint32_t *>(shared)[i] = 0x3f803f80;  // bf16 1, 1
  async_fence();
  __syncthreads();
  uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
  float d[N / 2] = {};
  const uint64_t b = wgmma_descriptor(shared_address(shared), 8192);
  const long long begin = clock64();
#pragma unroll 1
  for (int i = 0; i < BATCHES; ++i) {
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < BATCH; ++j) wgmma<TRANSPOSED>(d, a, b);
    wgmma_commit();
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  pin(d);
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - begin;
  float sum = 0;
  for (float x : d) sum += x;
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

template <int N, int TRANSPOSED = 0>
void measure(int warpgroups) {
  const int blocks = sms(), threads = 128 * warpgroups;
  float *sums = device<float>(blocks * threads);
  allow_shared(rate<N, TRANSPOSED>, 120 * 1024);  // one block an SM
  const double c = cycles(blocks, [&](long long *clocks) { rate<N, TRANSPOSED><<<blocks, threads, 120 * 1024>>>(clocks, sums); });
  for (float x : host(sums, blocks * threads)) expect(x == BATCH * BATCHES * 16.f * (N / 2), "sum of products of ones");
  char name[64];
  std::snprintf(name, sizeof name, "n=%d%s, %d warpgroup%s", N, TRANSPOSED ? " transposed B" : "", warpgroups, warpgroups > 1 ? "s" : "");
  row(name, c / (BATCH * BATCHES * warpgroups), "cycles", std::max(16.0, N / 2.0));
}

int main() {
  for (int warpgroups : {1, 2, 4}) {
    measure<16>(warpgroups);
    measure<32>(warpgroups);
    measure<64>(warpgroups);
    if (warpgroups < 4) measure<128>(warpgroups);
  }
  measure<128, 1>(2);
}

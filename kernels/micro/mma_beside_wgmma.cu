// Do mma.sync of one warpgroup and wgmma of another share the tensor cores, and how?
//
// Why it decides: the fused kernel makes L and M (10 + 10 blocks of 16 x 16 a chunk) by mma.sync in the warps that prepare, beside the
// wgmmas of the warps that hold the state.
// Method: one block an SM; 2 warpgroups run a fixed number of RS wgmmas m64n64k16, 2 others of mma.sync m16n8k16 (8 independent
// sums a warp). Each alone, then both at once with amounts that take about equally long.
// Prediction: wgmma 32 cycles. mma.sync reaches about 62 % of the dense rate on this architecture: 4,096 FLOP at 0.62 x 1,024 FLOP a cycle
// and tensor core = 6.5 cycles a warp, 1.6 an SM. Together they use one pipe: both = the sum of each alone, ratio 1.
#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

constexpr int WGMMAS = 1024, MMAS = 5120;  // a warpgroup's, a warp's: 65,536 cycles each by the prediction

__global__ void __launch_bounds__(512) run(bool with_wgmma, bool with_mma, long long *clocks, float *sums) {
  extern __shared__ __align__(1024) unsigned char shared[];
  for (int i = threadIdx.x; i < 16 * 1024 / 4; i += blockDim.x) reinterpret_cast<uint32_t *>(shared)[i] = 0x3f803f80;
  async_fence();
  __syncthreads();
  const uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
  float sum = 0;
  const long long begin = clock64();
  if (threadIdx.x < 256) {
    float d[32] = {};
    const uint64_t b = wgmma_descriptor(shared_address(shared));
    if (with_wgmma) {
#pragma unroll 1
      for (int i = 0; i < WGMMAS / 8; ++i) {
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 8; ++j) wgmma(d, a, b);
        wgmma_commit();
        wgmma_wait<1>();
      }
      wgmma_wait<0>();
    }
    pin(d);
    for (float x : d) sum += x;
  } else {
    float c[8][4] = {};
    if (with_mma) {
#pragma unroll 1
      for (int i = 0; i < MMAS / 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) mma(c[j], a, 0x3f803f80, 0x3f803f80);
    }
    for (auto &x : c) sum += x[0];
  }
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - begin;
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

int main() {
  const int blocks = sms();
  float *sums = device<float>(blocks * 512);
  allow_shared(run, 120 * 1024);
  auto measure = [&](bool with_wgmma, bool with_mma) {
    const double c = cycles(blocks, [&](long long *clocks) { run<<<blocks, 512, 120 * 1024>>>(with_wgmma, with_mma, clocks, sums); });
    const std::vector<float> x = host(sums, blocks * 512);
    for (int i = 0; i < blocks * 512; ++i)
      expect(x[i] == (i % 512 < 256 ? (with_wgmma ? 32 * 16.f * WGMMAS : 0) : (with_mma ? 16.f * MMAS : 0)), "sums of ones");
    return c;
  };
  const double w = measure(true, false), m = measure(false, true), both = measure(true, true);
  row("wgmma m64n64k16 alone, each", w / (2 * WGMMAS), "cycles", 32);
  row("mma.sync m16n8k16 alone, each", m / (8 * MMAS), "cycles", 1.6);
  row("both at once / the sum of each alone", both / (w + m), "ratio", 1.0);
}

// Does the arithmetic of preparation slow down the wgmmas beside it, or they it?
//
// Why it decides: fusing pays only if exponentials, conversions and plain arithmetic of one pair of warpgroups run while the tensor
// cores work for another.
// Method: one block an SM; 2 warpgroups run RS wgmmas m64n64k16, 2 others a fixed number of one instruction in 8 independent chains a thread,
// about a third as long. Alone: instructions a cycle and SM. Beside wgmma: how much longer they take, and what a wgmma takes
// meanwhile: the cycles by which all wgmmas end later were lost while the others ran.
// Prediction: ex2, tanh 16 a cycle and SM; cvt.rn.bf16x2 64 (half rate, two numbers each); fma 128; 4-byte shared stores 32, 128 B a
// cycle. Beside wgmma none takes longer (1.0): registers of A are read from the same banks, but only 2 KB of every 32 cycles, and
// wgmma stays at 32, except beside shared stores, which share 128 B a cycle with B's 2 KB every 32 cycles (half of them): 1.5.
// (Not predicted, and seen: accumulators are registers too, 16 KB read and 16 KB written every 32 cycles.)
#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

enum Pipe { EX2, TANH, CVT, FMA, STS };
constexpr int ROUNDS = 128, UNROLLED = 4, CHAINS = 8, WORK = ROUNDS * UNROLLED * CHAINS;  // instructions a thread

template <Pipe P>
__device__ __forceinline__ float work(float seed, uint32_t address) {
  float x[CHAINS];
#pragma unroll
  for (int j = 0; j < CHAINS; ++j) x[j] = seed + j;
#pragma unroll 1
  for (int i = 0; i < ROUNDS; ++i)
#pragma unroll
    for (int n = 0; n < UNROLLED * CHAINS; ++n) {
      const int j = n % CHAINS;
      if constexpr (P == EX2) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(x[j]));
      if constexpr (P == TANH) asm volatile("tanh.approx.f32 %0, %0;" : "+f"(x[j]));
      if constexpr (P == CVT) {
        uint32_t y;
        asm volatile("cvt.rn.bf16x2.f32 %0, %1, %1;" : "=r"(y) : "f"(x[j]));
        x[j] = __uint_as_float(y);
      }
      if constexpr (P == FMA) asm volatile("fma.rn.f32 %0, %0, %1, %1;" : "+f"(x[j]) : "f"(seed));
      if constexpr (P == STS) asm volatile("st.shared.f32 [%0], %1;" ::"r"(address + n * 1024), "f"(x[j]) : "memory");
    }
  float sum = 0;
  for (float y : x) sum += y;
  return sum;
}

// Cycles of the wgmmas in clocks[2 b], of the others in clocks[2 b + 1].
template <Pipe P>
__global__ void __launch_bounds__(512) run(int batches, bool others, long long *clocks, float *sums) {
  extern __shared__ __align__(1024) unsigned char shared[];
  for (int i = threadIdx.x; i < 16 * 1024 / 4; i += blockDim.x) reinterpret_cast<uint32_t *>(shared)[i] = 0x3f803f80;
  async_fence();
  __syncthreads();
  float sum = 0;
  const long long begin = clock64();
  if (threadIdx.x < 256) {
    const uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    float d[32] = {};
    const uint64_t b = wgmma_descriptor(shared_address(shared));
#pragma unroll 1
    for (int i = 0; i < batches; ++i) {
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 8; ++j) wgmma(d, a, b);
      wgmma_commit();
      wgmma_wait<1>();
    }
    wgmma_wait<0>();
    pin(d);
    sum = d[0];
  } else if (others) {
    sum = work<P>(1.f + threadIdx.x, shared_address(shared) + 16 * 1024 + (threadIdx.x - 256) * 4);
  }
  const long long end = clock64();
  if (threadIdx.x % 256 == 0) clocks[2 * blockIdx.x + threadIdx.x / 256] = end - begin;
  sums[blockIdx.x * 512 + threadIdx.x] = sum;
}

template <Pipe P>
void measure(const char *name, double predicted, double slower, double wgmma_cycles) {
  const int blocks = sms();
  int batches = 0;
  float *sums = device<float>(blocks * 512);
  allow_shared(run<P>, 120 * 1024);
  struct Times {
    double wgmmas, others;
  };
  auto time = [&](bool others) {
    Times t;
    long long *clocks = device<long long>(2 * blocks);
    for (int i = 0; i < 2; ++i) run<P><<<blocks, 512, 120 * 1024>>>(batches, others, clocks, sums);
    LAB_CHECK(cudaDeviceSynchronize());
    const auto each = host(clocks, 2 * blocks);
    std::vector<double> w, o;
    for (int b = 0; b < blocks; ++b) w.push_back(each[2 * b]), o.push_back(each[2 * b + 1]);
    LAB_CHECK(cudaFree(clocks));
    return Times{median(w), median(o)};
  };
  const double alone = time(true).others;
  batches = static_cast<int>(3 * alone / (2 * 32 * 8)) + 1;
  const double wgmmas = time(false).wgmmas;
  const Times both = time(true);
  const auto x = host(sums, blocks * 512);
  for (int i = 0; i < blocks; ++i) expect(x[i * 512] == 16.f * 8 * batches, "sum of the wgmmas beside");
  expect(both.wgmmas > both.others, "wgmmas that last longer than what runs beside them");
  char text[96];
  std::snprintf(text, sizeof text, "%s alone", name);
  row(text, 256.0 * WORK / alone, "a cycle", predicted);
  std::snprintf(text, sizeof text, "%s beside wgmma / alone", name);
  row(text, both.others / alone, "ratio", slower);
  std::snprintf(text, sizeof text, "a wgmma beside %s", name);
  row(text, wgmmas / (16.0 * batches) * both.others / (both.others - (both.wgmmas - wgmmas)), "cycles", wgmma_cycles);
}

int main() {
  measure<EX2>("ex2", 16, 1, 32);
  measure<TANH>("tanh", 16, 1, 32);
  measure<CVT>("cvt.bf16x2", 64, 1, 32);
  measure<FMA>("fma", 128, 1, 32);
  measure<STS>("4-byte shared stores", 32, 1.5, 48);
}

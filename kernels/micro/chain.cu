// How long is the recurrence's serial chain, product by product and chunk by chunk?
//
// Why it decides: with few heads the chain is all of the time (v2: 512 steps at about 2,000 cycles). A step of 64 tokens is worth
// having if it takes less than four of 16.
// Method: one block an SM; every product takes as A what the last one left in the accumulators, rounded to bf16. Cycles a link.
// "chunk" rows are a whole chunk of the recurrence on operands that stay in shared memory: S^T K~^T (8 k-steps), R^T = V^T - it,
// U^T = R^T T'^T, S^T = S^T decay + U^T K- (n = 128); with "output" also Q~S and M U. No barriers, no copies.
// Prediction: mma.sync m16n8k16 33 cycles of latency, + 2 conversions at about 6 = 40. A wgmma needs fence, issue, result about 30
// cycles beyond its N / 2 (at least 16), plus conversions of N / 4 registers at 2 warp-cycles: n = 16: 16 + 30 + 10 = 56;
// n = 64, 4 k-steps: 128 + 30 + 32 = 190; n = 64, 8 k-steps on 128 channels: 256 + 30 + 64 (conversion of S, half of it hidden) = 350.
// Chunk of 64, 1 warpgroup: 350 + R 50 + U 190 + S (4 x 64 + 30) 286 = 880; output adds 8 x 32 + 4 x 32 = 384: 1,260. 2 warpgroups:
// the products of both, 2 x (256 + 128 + 256) = 1,280, hide half of the rest: 1,500; with output 2 x 1,024 + 300 = 2,350.
// Chunk of 16: n = 16 at 16 cycles: 8 x 16 + 30 + 64 = 222, R 20, U 56, S 64 + 40 = 104: 400; with output 9 x 16 more: 550.
#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

constexpr int LINKS = 256;

template <int M>
__device__ __forceinline__ void round_to(uint32_t (&a)[M][4], const float (&d)[8 * M]) {
#pragma unroll
  for (int s = 0; s < M; ++s)
#pragma unroll
    for (int e = 0; e < 4; ++e) a[s][e] = pack_bf16(d[8 * s + 2 * e], d[8 * s + 2 * e + 1]);
}

// A link: c [16,16] = bf16(c) b, two mma.sync.
__global__ void mma_links(long long *clocks, float *out) {
  const bool diagonal = (threadIdx.x & 31) / 4 / 2 == threadIdx.x % 4;  // b = identity: (k, n) on the diagonal
  const uint32_t one = diagonal ? ((threadIdx.x & 31) / 4 % 2 ? 0x3f800000u : 0x3f80u) : 0u;
  float c[2][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}};
  const long long begin = clock64();
#pragma unroll 1
  for (int i = 0; i < LINKS; ++i) {
    uint32_t a[4] = {pack_bf16(c[0][0], c[0][1]), pack_bf16(c[0][2], c[0][3]), pack_bf16(c[1][0], c[1][1]), pack_bf16(c[1][2], c[1][3])};
    float zero[2][4] = {};
    mma(zero[0], a, one, 0);
    mma(zero[1], a, 0, one);
#pragma unroll
    for (int e = 0; e < 8; ++e) c[e / 4][e % 4] = zero[e / 4][e % 4];
  }
  const long long end = clock64();
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
  out[blockIdx.x * blockDim.x + threadIdx.x] = c[0][0] + c[1][3];  // 1 + 8, as it was
}

// c += a b: how soon the next sum may start.
__global__ void mma_sums(long long *clocks, float *out) {
  float c[4] = {};
  uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
  const long long begin = clock64();
#pragma unroll 8
  for (int i = 0; i < LINKS; ++i) mma(c, a, 0x3f803f80, 0x3f803f80);
  const long long end = clock64();
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
  out[blockIdx.x * blockDim.x + threadIdx.x] = c[0];
}

// An identity of bf16 in a panel, so that a chain of products keeps its numbers.
__device__ void identity(unsigned char *panel, int rows) {
  for (int i = threadIdx.x; i < rows * 64; i += blockDim.x) {
    const int r = i / 64, c = i % 64;
    reinterpret_cast<uint16_t *>(panel)[(panel_offset(r, c / 8) + c % 8 * 2) / 2] = r == c ? 0x3f80 : 0;
  }
}

// A link: d [64,N] = bf16(d [64,N]) b [N,N], N / 16 k-steps.
template <int N>
__global__ void wgmma_links(long long *clocks, float *out) {
  extern __shared__ __align__(1024) unsigned char shared[];
  identity(shared, 64);
  async_fence();
  __syncthreads();
  const uint64_t b = wgmma_descriptor(shared_address(shared));
  float d[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[i] = i + 1;
  const long long begin = clock64();
#pragma unroll 1
  for (int i = 0; i < LINKS; ++i) {
    uint32_t a[N / 16][4];
    round_to(a, d);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < N / 16; ++s) wgmma(d, a[s], b + 2 * s, s > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
  }
  const long long end = clock64();
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
  out[blockIdx.x * blockDim.x + threadIdx.x] = d[0] + d[N / 2 - 1];
}

// A chunk of C tokens; operands are zero matrices but for V, so that S stays what it was: the time does not depend on it.
template <int C, bool OUTPUT>
__global__ void __launch_bounds__(256) chunk(long long *clocks, float *out) {
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int PANEL = 64 * 128;
  for (int i = threadIdx.x; i < 8 * PANEL / 4; i += blockDim.x) reinterpret_cast<uint32_t *>(shared)[i] = 0;
  float *decay = reinterpret_cast<float *>(shared + 8 * PANEL);
  for (int i = threadIdx.x; i < 128; i += blockDim.x) decay[i] = 1.f;
  async_fence();
  __syncthreads();
  const uint32_t at = shared_address(shared);
  const uint64_t k_decayed = wgmma_descriptor(at), q_decayed = wgmma_descriptor(at + 2 * PANEL);
  const uint64_t k_rest = wgmma_descriptor(at + 4 * PANEL, PANEL), t_tile = wgmma_descriptor(at + 6 * PANEL), m_tile = wgmma_descriptor(at + 7 * PANEL);
  float s[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) s[i] = i;
  const int column = 2 * (threadIdx.x & 3);
  const long long begin = clock64();
#pragma unroll 1
  for (int i = 0; i < LINKS; ++i) {
    float r[C / 2], o[C / 2];
    uint32_t a[8][4];
    wgmma_wait<0>();  // once more: only a wait inside the loop tells ptxas that S may be touched beside the products below
    pin(s);
    round_to(a, s);
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 8; ++step) wgmma(r, a[step], k_decayed + step / 4 * (PANEL >> 4) + step % 4 * 2, step > 0);
    wgmma_commit();
    if constexpr (OUTPUT) {
#pragma unroll
      for (int step = 0; step < 8; ++step) wgmma(o, a[step], q_decayed + step / 4 * (PANEL >> 4) + step % 4 * 2, step > 0);
      wgmma_commit();
    }
#pragma unroll
    for (int j = 0; j < 16; ++j) {  // the decay of S: done while the product runs
      const float2 d = *reinterpret_cast<const float2 *>(decay + 8 * j + column);
      s[4 * j] *= d.x, s[4 * j + 1] *= d.y, s[4 * j + 2] *= d.x, s[4 * j + 3] *= d.y;
    }
    wgmma_wait<OUTPUT ? 1 : 0>();
    pin(r);
    uint32_t fr[C / 16][4];
#pragma unroll
    for (int j = 0; j < C / 2; ++j) r[j] = 1.f - r[j];
    round_to(fr, r);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < C / 16; ++step) wgmma(r, fr[step], t_tile + step * 2, step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(r);
    round_to(fr, r);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < C / 16; ++step) wgmma<1>(s, fr[step], k_rest + step * (2048 >> 4));
    wgmma_commit();
    if constexpr (OUTPUT) {
#pragma unroll
      for (int step = 0; step < C / 16; ++step) wgmma(o, fr[step], m_tile + step * 2);
      wgmma_commit();
    }
    wgmma_wait<OUTPUT ? 1 : 0>();
    pin(s);
    if constexpr (OUTPUT) {
      wgmma_wait<0>();
      pin(o);
      s[0] += o[0];  // zero
    }
  }
  const long long end = clock64();
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
  float sum = 0;
  for (float x : s) sum += x;
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

template <class Kernel>
void measure(const char *name, Kernel kernel, int threads, float right, double predicted) {
  const int blocks = sms();
  float *out = device<float>(blocks * threads);
  allow_shared(kernel, 120 * 1024);
  const double c = cycles(blocks, [&](long long *clocks) { kernel<<<blocks, threads, 120 * 1024>>>(clocks, out); });
  for (float x : host(out, blocks * threads)) expect(x == right, name);
  row(name, c / LINKS, "cycles", predicted);
  LAB_CHECK(cudaFree(out));
}

int main() {
  measure("mma.sync, sum on sum", mma_sums, 32, LINKS * 16, 33);
  measure("mma.sync, result to operand", mma_links, 32, 9, 40);
  measure("wgmma n=16, result to operand", wgmma_links<16>, 128, 9, 56);
  measure("wgmma n=64, result to operand", wgmma_links<64>, 128, 33, 190);
  measure("chunk of 64, 1 warpgroup", chunk<64, false>, 128, 2016, 880);
  measure("chunk of 64, 2 warpgroups", chunk<64, false>, 256, 2016, 1500);
  measure("chunk of 64 and output, 1 warpgroup", chunk<64, true>, 128, 2016, 1260);
  measure("chunk of 64 and output, 2 warpgroups", chunk<64, true>, 256, 2016, 2350);
  measure("chunk of 16, 1 warpgroup", chunk<16, false>, 128, 2016, 400);
  measure("chunk of 16, 2 warpgroups", chunk<16, false>, 256, 2016, 450);
  measure("chunk of 16 and output, 1 warpgroup", chunk<16, true>, 128, 2016, 550);
  measure("chunk of 16 and output, 2 warpgroups", chunk<16, true>, 256, 2016, 650);
}

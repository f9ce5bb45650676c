// What does an access cost: one after another, and thirty-two at once?
//
// Question   A lone access is a wait (latency); a warp's access is a number of 32-byte sectors (bandwidth).
//            Notebook 10 explains v0 by the first and coalescing by the second.
// Predicted  Shared memory answers in 30 cycles, device memory in 800. A loop that multiplies a column of
//            shared memory in place waits for each load, because the store before it might have changed
//            what it loads: 35 cycles a number. With 8 loads ahead of 8 stores it is an eighth of that,
//            or the issue of 24 accesses by 4 warps: 12 cycles. Neighbouring lanes read 4.2 TB/s; lanes
//            4 n bytes apart use an n-th of what moves, down to an eighth: then each has its own sector.

#include <algorithm>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cuda_runtime.h>

namespace {

constexpr int kHops = 2048, kChannels = 128, kColumns = 128;
constexpr int64_t kNumbers = int64_t(1) << 28;  // 1 GiB: far more than L2 holds
constexpr int kAhead = 8;                       // loads in flight of a thread

void must(cudaError_t code) {
  if (code == cudaSuccess) return;
  fprintf(stderr, "%s\n", cudaGetErrorString(code));
  exit(1);
}

void row(const char *workload, double value, const char *unit, double predicted) {
  printf("{\"workload\": \"%s\", \"value\": %.4g, \"unit\": \"%s\", \"predicted\": %.4g}\n", workload,
         value, unit, predicted);
}

// Each load gives the address of the next: nothing overlaps.
__global__ void chase_shared(long long *cycles, uint32_t *end) {
  __shared__ uint32_t next[1024];
  for (int i = 0; i < 1024; ++i) next[i] = (i + 33) % 1024;
  uint32_t at = 0;
  const long long begin = clock64();
  for (int i = 0; i < kHops; ++i) at = next[at];
  *cycles = clock64() - begin;
  *end = at;
}

__global__ void chase_global(const uint32_t *next, long long *cycles, uint32_t *end) {
  uint32_t at = 0;
  const long long begin = clock64();
  for (int i = 0; i < kHops; ++i) at = next[at];
  *cycles = clock64() - begin;
  *end = at;
}

__global__ void link(uint32_t *next, uint32_t step) {  // every hop a line that nobody has touched
  for (uint32_t i = 0; i <= kHops; ++i) next[i * step] = (i + 1) * step;
}

// v0's decay, S[c] *= d[c] for a thread's own column: one load ahead of its store, or AHEAD of them.
// Sizes are arguments, as in v0: the compiler cannot tell where one array ends.
template <int AHEAD>
__global__ void decay(int channels, int columns, long long *cycles, float *sum) {
  extern __shared__ float memory[];
  float *S = memory, *d = memory + channels * columns;
  const int x = threadIdx.x;
  for (int c = 0; c < channels; ++c) S[c * columns + x] = 1.0f;
  for (int c = x; c < channels; c += columns) d[c] = 0.5f;
  __syncthreads();
  const long long begin = clock64();
  for (int c = 0; c < channels; c += AHEAD) {
    float s[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) s[i] = S[(c + i) * columns + x] * d[c + i];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) S[(c + i) * columns + x] = s[i];
  }
  __syncthreads();
  if (x == 0) *cycles = clock64() - begin;
  float all = 0.0f;
  for (int c = 0; c < channels; ++c) all += S[c * columns + x];
  sum[x] = all;
}

__global__ void count_up(uint32_t *x) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < kNumbers;
       i += int64_t(gridDim.x) * blockDim.x)
    x[i] = static_cast<uint32_t>(i);
}

// Every STRIDE-th piece, kAhead loads of a thread in flight. Returns the sum, so that nothing is left out.
template <typename T, int STRIDE>
__global__ void read(const T *x, int64_t pieces, unsigned long long *total) {
  const int64_t all = int64_t(gridDim.x) * blockDim.x;
  unsigned long long sum = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < pieces; i += kAhead * all) {
    T got[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) got[j] = x[(i + j * all) * STRIDE];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if constexpr (sizeof(T) == 16) sum += uint64_t(got[j].x) + got[j].y + got[j].z + got[j].w;
      else sum += got[j];
  }
  for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, m);
  if (threadIdx.x % 32 == 0) atomicAdd(total, sum);
}

// Useful TB/s of one pattern, the best of five. False sums end the program.
template <typename T, int STRIDE>
double terabytes(const uint32_t *x, unsigned long long *total) {
  constexpr int kBlocks = 2048, kBlock = 256;
  constexpr int64_t kWords = sizeof(T) / 4, pieces = kNumbers / kWords / STRIDE;
  static_assert(pieces % (int64_t(kBlocks) * kBlock * kAhead) == 0, "no tail");
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin)), must(cudaEventCreate(&end));
  float best = 1e9f;
  for (int i = 0; i < 5; ++i) {
    must(cudaMemset(total, 0, sizeof *total));
    must(cudaEventRecord(begin));
    read<T, STRIDE><<<kBlocks, kBlock>>>(reinterpret_cast<const T *>(x), pieces, total);
    must(cudaEventRecord(end));
    must(cudaEventSynchronize(end));
    float ms;
    must(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, ms);
  }
  unsigned long long got;
  must(cudaMemcpy(&got, total, sizeof got, cudaMemcpyDeviceToHost));
  // x[i] = i: the sum of STRIDE * (0 + 1 + ... ), or of all numbers when pieces leave none out
  const unsigned long long n = STRIDE == 1 ? kNumbers : pieces;
  if (got != n * (n - 1) / 2 * STRIDE) {
    fprintf(stderr, "a sum of %llu, not %llu\n", got, n * (n - 1) / 2 * STRIDE);
    exit(1);
  }
  return double(pieces) * sizeof(T) / best / 1e9;
}

}  // namespace

int main() {
  uint32_t *x, *end;
  long long *cycles;
  float *sum;
  unsigned long long *total;
  must(cudaMalloc(&x, kNumbers * 4)), must(cudaMalloc(&total, 8));
  must(cudaMallocManaged(&end, 4)), must(cudaMallocManaged(&cycles, 8));
  must(cudaMallocManaged(&sum, kColumns * 4));

  chase_shared<<<1, 1>>>(cycles, end);
  must(cudaDeviceSynchronize());
  if (*end != kHops * 33u % 1024) return fprintf(stderr, "a wrong end in shared memory\n"), 1;
  row("shared memory, load after load", double(*cycles) / kHops, "cycles", 30);

  const uint32_t step = kNumbers / (2 * kHops);  // 512 KB
  link<<<1, 1>>>(x, step);
  must(cudaMemset(x + kNumbers / 2 + step, 0, kNumbers * 2 - step * 4));  // sweeps the links out of L2
  chase_global<<<1, 1>>>(x, cycles, end);
  must(cudaDeviceSynchronize());
  if (*end != kHops * step) return fprintf(stderr, "a wrong end in device memory\n"), 1;
  row("device memory, load after load", double(*cycles) / kHops, "cycles", 800);

  auto in_place = [&](auto kernel, const char *name, double predicted) {
    constexpr int kShared = (kChannels * kColumns + kChannels) * 4;
    must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
    kernel<<<1, kColumns, kShared>>>(kChannels, kColumns, cycles, sum);
    must(cudaGetLastError());
    must(cudaDeviceSynchronize());
    for (int i = 0; i < kColumns; ++i)
      if (sum[i] != kChannels / 2) fprintf(stderr, "a wrong column\n"), exit(1);
    row(name, double(*cycles) / kChannels, "cycles", predicted);
  };
  in_place(decay<1>, "S *= d in shared memory, load by load", 35);
  in_place(decay<8>, "S *= d in shared memory, 8 loads ahead", 12);

  count_up<<<2048, 256>>>(x);
  must(cudaDeviceSynchronize());
  row("lanes 4 bytes apart, 4 each", terabytes<uint32_t, 1>(x, total), "TB/s", 4.2);
  row("lanes 16 bytes apart, 16 each", terabytes<uint4, 1>(x, total), "TB/s", 4.2);
  row("lanes 8 bytes apart, 4 each", terabytes<uint32_t, 2>(x, total), "TB/s", 4.2 / 2);
  row("lanes 16 bytes apart, 4 each", terabytes<uint32_t, 4>(x, total), "TB/s", 4.2 / 4);
  row("lanes 32 bytes apart, 4 each", terabytes<uint32_t, 8>(x, total), "TB/s", 4.2 / 8);
  row("lanes 128 bytes apart, 4 each", terabytes<uint32_t, 32>(x, total), "TB/s", 4.2 / 8);
  return 0;
}

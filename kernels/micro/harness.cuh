// Host side of the measuring programs: errors that end them, memory, repeated launches, and rows for the ledger.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace lab {

inline void check(cudaError_t code, const char *what) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
  std::exit(1);
}
#define LAB_CHECK(call) lab::check(call, #call)

// A condition on what was computed: a program that computes something else measures something else.
inline void expect(bool right, const char *what) {
  if (right) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

// One measurement: a line that `kda-lab bench micro` records.
inline void row(const char *workload, double value, const char *unit, double predicted) {
  std::printf("{\"workload\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"predicted\": %.6g}\n", workload, value, unit, predicted);
  std::fflush(stdout);
}

inline int sms() {
  int count = 0;
  LAB_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// Device memory of N things, zero at first; freed when the program ends.
template <class T>
T *device(size_t n) {
  T *p = nullptr;
  LAB_CHECK(cudaMalloc(&p, n * sizeof(T)));
  LAB_CHECK(cudaMemset(p, 0, n * sizeof(T)));
  return p;
}
template <class T>
std::vector<T> host(const T *p, size_t n) {
  std::vector<T> x(n);
  LAB_CHECK(cudaMemcpy(x.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return x;
}
template <class T>
T *device(const std::vector<T> &x) {
  T *p = device<T>(x.size());
  LAB_CHECK(cudaMemcpy(p, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}

inline double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x.empty() ? 0 : x[x.size() / 2];
}

template <class... P>
void allow_shared(void (*kernel)(P...), int bytes) {
  LAB_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

// Clock cycles of a launch, as `launch(clocks)` leaves them one number a block: the median over blocks of the best of
// `repeats` launches, the first of which only warms up.
template <class Launch>
double cycles(int blocks, Launch launch, int repeats = 4) {
  long long *clocks = device<long long>(blocks);
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    launch(clocks);
    LAB_CHECK(cudaGetLastError());
    LAB_CHECK(cudaDeviceSynchronize());
    const std::vector<long long> each = host(clocks, blocks);
    const double middle = median(std::vector<double>(each.begin(), each.end()));
    if (i == 1 || (i > 1 && middle < best)) best = middle;
  }
  LAB_CHECK(cudaFree(clocks));
  return best;
}

// Milliseconds of `work()` by events: the median of `repeats` after two that warm up.
template <class Work>
double milliseconds(Work work, int repeats = 10) {
  cudaEvent_t begin, end;
  LAB_CHECK(cudaEventCreate(&begin));
  LAB_CHECK(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = -2; i < repeats; ++i) {
    LAB_CHECK(cudaEventRecord(begin));
    work();
    LAB_CHECK(cudaEventRecord(end));
    LAB_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    LAB_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0) times.push_back(ms);
  }
  LAB_CHECK(cudaGetLastError());
  return median(times);
}

}  // namespace lab

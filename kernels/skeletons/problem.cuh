// What both skeletons are given and held to: inputs made on the GPU, and the recurrence token by token in fp64 on the host.
//
// One call of chunk_kda with everything fused (l2 norm, safe gate with lower bound -5, sigmoid of beta), initial state zero, sequences of
// equal length that is a multiple of 64: no tails, no packing. A skeleton answers what a design costs, not what a user needs.
#pragma once
#include <cuda_bf16.h>

#include <cstring>

#include "../micro/harness.cuh"

namespace skeleton {

constexpr int K = 128, V = 128;
constexpr float LOWER_BOUND = -5.f;

struct Problem {
  int sequences, tokens, heads;            // tokens of one sequence
  const __nv_bfloat16 *q, *k, *v, *g;      // [sequences * tokens, heads, 128], raw
  const __nv_bfloat16 *beta;               // [sequences * tokens, heads], logits
  __nv_bfloat16 *o;                        // as v
  float *state;                            // [sequences, heads, V, K], final
};

// Two hashed numbers in (0, 1] -> one of a normal distribution.
__device__ inline float normal(uint64_t seed) {
  auto mix = [](uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
  };
  const uint64_t x = mix(seed + 0x9e3779b97f4a7c15ull);
  const float u = (static_cast<uint32_t>(x) >> 8 | 1) * 0x1p-24f, w = (x >> 40) * 0x1p-24f;
  return sqrtf(-2.f * logf(u)) * cospif(2.f * w);
}
__global__ void fill(__nv_bfloat16 *x, size_t n, float mean, float deviation, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += gridDim.x * size_t(blockDim.x))
    x[i] = __float2bfloat16_rn(mean + deviation * normal(seed << 40 ^ i));
}

inline Problem make(int sequences, int tokens, int heads, float gate_mean, float gate_deviation) {
  const size_t rows = size_t(sequences) * tokens * heads;
  auto drawn = [&](size_t n, float mean, float deviation, uint64_t seed) {
    auto *x = lab::device<__nv_bfloat16>(n);
    fill<<<1024, 256>>>(x, n, mean, deviation, seed);
    return x;
  };
  return {sequences, tokens, heads, drawn(rows * K, 0, 1, 1), drawn(rows * K, 0, 1, 2), drawn(rows * V, 0, 1, 3),
          drawn(rows * K, gate_mean, gate_deviation, 4), drawn(rows, 0, 1, 5), lab::device<__nv_bfloat16>(rows * V),
          lab::device<float>(size_t(sequences) * heads * V * K)};
}
inline void release(const Problem &p) {
  for (const void *x : {static_cast<const void *>(p.q), static_cast<const void *>(p.k), static_cast<const void *>(p.v),
                        static_cast<const void *>(p.g), static_cast<const void *>(p.beta), static_cast<const void *>(p.o),
                        static_cast<const void *>(p.state)})
    LAB_CHECK(cudaFree(const_cast<void *>(x)));
}

struct Errors {
  double o, state;  // relative L2
};

// The recurrence itself: S <- diag(e^g) S; u = beta (v - S^T k); S <- S + k u^T; o = scale S^T q.
inline Errors errors(const Problem &p) {
  const size_t rows = size_t(p.sequences) * p.tokens * p.heads;
  auto wide = [&](const __nv_bfloat16 *x, size_t n) {
    const auto bits = lab::host(reinterpret_cast<const uint16_t *>(x), n);
    std::vector<float> y(n);
    for (size_t i = 0; i < n; ++i) {
      const uint32_t word = uint32_t(bits[i]) << 16;
      std::memcpy(&y[i], &word, 4);
    }
    return y;
  };
  const auto q = wide(p.q, rows * K), k = wide(p.k, rows * K), v = wide(p.v, rows * V), g = wide(p.g, rows * K), beta = wide(p.beta, rows), o = wide(p.o, rows * V);
  const auto state = lab::host(p.state, size_t(p.sequences) * p.heads * V * K);
  double o_off = 0, o_all = 0, s_off = 0, s_all = 0;
  std::vector<double> S(K * V), kn(K), qn(K), u(V), out(V);
  for (int n = 0; n < p.sequences; ++n)
    for (int h = 0; h < p.heads; ++h) {
      std::fill(S.begin(), S.end(), 0.);
      for (int t = 0; t < p.tokens; ++t) {
        const size_t at = (size_t(n) * p.tokens + t) * p.heads + h;
        double qq = 1e-6, kk = 1e-6;
        for (int c = 0; c < K; ++c) qq += double(q[at * K + c]) * q[at * K + c], kk += double(k[at * K + c]) * k[at * K + c];
        std::fill(u.begin(), u.end(), 0.);
        std::fill(out.begin(), out.end(), 0.);
        for (int c = 0; c < K; ++c) {
          kn[c] = k[at * K + c] / std::sqrt(kk), qn[c] = q[at * K + c] / std::sqrt(qq) / std::sqrt(double(K));
          const double decay = std::exp(LOWER_BOUND / (1 + std::exp(-double(g[at * K + c]))));
          for (int x = 0; x < V; ++x) u[x] += kn[c] * (S[c * V + x] *= decay);
        }
        const double b = 1 / (1 + std::exp(-double(beta[at])));
        for (int x = 0; x < V; ++x) u[x] = b * (v[at * V + x] - u[x]);
        for (int c = 0; c < K; ++c)
          for (int x = 0; x < V; ++x) out[x] += qn[c] * (S[c * V + x] += kn[c] * u[x]);
        for (int x = 0; x < V; ++x) {
          const double d = o[at * V + x] - out[x];
          o_off += d * d, o_all += out[x] * out[x];
        }
      }
      for (int x = 0; x < V; ++x)
        for (int c = 0; c < K; ++c) {
          const double d = state[((size_t(n) * p.heads + h) * V + x) * K + c] - S[c * V + x];
          s_off += d * d, s_all += S[c * V + x] * S[c * V + x];
        }
    }
  return {std::sqrt(o_off / o_all), std::sqrt(s_off / s_all)};
}

// Runs `forward` on small problems with every kind of safe gate; rows, and the end of the program where one is wrong.
template <class Forward>
void check_gates(Forward forward, double predicted) {
  const struct {
    const char *name;
    float mean, deviation;
  } gates[] = {{"strong", 0.5f, 1}, {"weak", -5.5f, 1}, {"long", -8.5f, 1}, {"all -5", 30, 0}, {"all 0", -100, 0}, {"mixed", -2, 6}};
  bool right = true;
  for (const auto &gate : gates) {
    const Problem p = make(2, 384, 2, gate.mean, gate.deviation);
    LAB_CHECK(cudaMemset(p.o, 0xff, size_t(p.sequences) * p.tokens * p.heads * V * 2));  // NaN: an unwritten row shows
    forward(p);
    LAB_CHECK(cudaGetLastError());
    LAB_CHECK(cudaDeviceSynchronize());
    const Errors e = errors(p);
    char name[64];
    std::snprintf(name, sizeof name, "error of o, gate %s", gate.name);
    lab::row(name, std::isfinite(e.o) ? e.o : 9, "relative L2", predicted);
    std::snprintf(name, sizeof name, "error of the state, gate %s", gate.name);
    lab::row(name, std::isfinite(e.state) ? e.state : 9, "relative L2", predicted);
    right = right && e.o < 6e-3 && e.state < 6e-3;
    release(p);
  }
  lab::expect(right, "output or state of a small problem");
}

}  // namespace skeleton

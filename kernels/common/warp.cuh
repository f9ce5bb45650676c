// Warp side that v1 and decode share: sums over lanes that leave each lane one result, and the
// preparation of a token (gate, norm, sigmoid) by one warp.
#pragma once

#include "device.cuh"

namespace kda {

constexpr unsigned kWarp = 0xffffffffu;

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int m = 16; m > 0; m /= 2) x += __shfl_xor_sync(kWarp, x, m);
  return x;
}

// Sums N numbers over LANES lanes that lie STRIDE apart. At each step a lane keeps half of its numbers
// and hands the other half to its partner, so N numbers cost about N shuffles, not N log2(LANES).
// Afterwards x[0 .. max(1, N / LANES)) are the sums of the numbers from first_of<...>(lane) on.
template <int N, int LANES, int STRIDE = 1>
__device__ inline void reduce_scatter(float (&x)[N], int lane) {
  int n = N;
#pragma unroll
  for (int m = LANES / 2; m > 0; m /= 2) {
    if (n > 1) {
      n /= 2;
      const bool upper = lane & (m * STRIDE);
#pragma unroll
      for (int i = 0; i < N / 2; ++i) {
        if (i >= n) break;
        const float keep = upper ? x[i + n] : x[i];
        const float give = upper ? x[i] : x[i + n];
        x[i] = keep + __shfl_xor_sync(kWarp, give, m * STRIDE);
      }
    } else {
      x[0] += __shfl_xor_sync(kWarp, x[0], m * STRIDE);
    }
  }
}

template <int N, int LANES, int STRIDE = 1>
__device__ inline int first_of(int lane) {
  return lane / STRIDE % LANES * N / LANES;
}

// A row of fp32 or bf16 numbers in global or shared memory. Reading and converting are two steps, so
// that a warp can start every load before it needs the first value.
struct Row {
  const void *data;
  int dtype;
  // Numbers first, first + 32, ... of n; zero from n on. One base address, immediate offsets.
  template <int N>
  __device__ void bits(int first, int n, uint32_t (&out)[N]) const {
    if (dtype == KDA_BF16) {
      const uint16_t *p = static_cast<const uint16_t *>(data) + first;
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = first + 32 * i < n ? p[32 * i] : 0;
    } else {
      const uint32_t *p = static_cast<const uint32_t *>(data) + first;
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = first + 32 * i < n ? p[32 * i] : 0;
    }
  }
  __device__ float value(uint32_t bits) const {
    return __uint_as_float(dtype == KDA_BF16 ? bits << 16 : bits);
  }
};

__device__ inline Row row_of(const kda_tensor &x, int64_t b, int64_t t, int h) {
  const int64_t size = x.dtype == KDA_BF16 ? 2 : 4;
  return {static_cast<const char *>(x.data) + row(x, b, t, h) * size, x.dtype};
}

// The raw rows of a token; lane l holds channels l + 32 i.
template <int KP>
struct RawToken {
  Row q, k, g;
  uint32_t q_bits[KP / 32], k_bits[KP / 32], g_bits[KP / 32];

  __device__ void load(int K, int lane) {
    q.bits(lane, K, q_bits);
    k.bits(lane, K, k_bits);
    g.bits(lane, K, g_bits);
  }
};

// What the recurrence reads of a token, in shared memory: KP >= K channels, k and q are zero beyond K.
template <int KP>
struct Token {
  float d[KP];  // exp(g)
  float k[KP];  // normalised when asked for
  float q[KP];  // normalised when asked for, times scale
};

// One warp fills `out` and returns <q, k> (with the scale) to every lane.
// o = S'^T q = (Diag(d) S)^T q + u <q, k>: with <q, k> at hand both reads of S are one pass, and the
// lanes meet once a token, not twice.
template <int KP>
__device__ inline float activate(const kda_args &a, const Gate &gate, const float (&bias)[KP / 32],
                                 const RawToken<KP> &raw, int lane, Token<KP> *out) {
  float q[KP / 32], k[KP / 32], g[KP / 32], qq = 0.0f, kk = 0.0f, qk = 0.0f;
#pragma unroll
  for (int i = 0; i < KP / 32; ++i) {
    q[i] = raw.q.value(raw.q_bits[i]);
    k[i] = raw.k.value(raw.k_bits[i]);
    g[i] = raw.g.value(raw.g_bits[i]);
    qq = fmaf(q[i], q[i], qq);
    kk = fmaf(k[i], k[i], kk);
    qk = fmaf(q[i], k[i], qk);
  }
  if (gate.kind == KDA_GATE_SIGMOID) {
#pragma unroll
    for (int i = 0; i < KP / 32; ++i) g[i] = gate.sigmoid_gate(g[i], bias[i]);
  } else if (gate.kind == KDA_GATE_SOFTPLUS) {
#pragma unroll
    for (int i = 0; i < KP / 32; ++i) g[i] = gate.softplus_gate(g[i], bias[i]);
  }
  float q_scale = a.scale, k_scale = 1.0f;
  if (a.l2norm) {
    q_scale *= rsqrtf(warp_sum(qq) + kNormEps);
    k_scale = rsqrtf(warp_sum(kk) + kNormEps);
  }
#pragma unroll
  for (int i = 0; i < KP / 32; ++i) {
    const int c = lane + 32 * i;
    out->d[c] = decay(g[i]);  // finite beyond K, where S is 0
    out->q[c] = q[i] * q_scale;
    out->k[c] = k[i] * k_scale;
  }
  return warp_sum(qk) * q_scale * k_scale;
}

template <int KP>
__device__ inline void load_bias(const Gate &gate, int K, int lane, float (&bias)[KP / 32]) {
#pragma unroll
  for (int i = 0; i < KP / 32; ++i)
    bias[i] = gate.bias && lane + 32 * i < K ? gate.bias[lane + 32 * i] : 0.0f;
}

}  // namespace kda

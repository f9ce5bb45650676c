// Device side that the rungs share: reading and writing fp32 or bf16, the activations of the contract,
// and where a sequence begins and ends. All arithmetic is fp32.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#include "../include/kda_lab.h"

namespace kda {

// ---- fp32 or bf16 in memory, fp32 in registers

__device__ inline float bf16_to_float(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }

__device__ inline uint16_t float_to_bf16(float x) {  // round to nearest even
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

__device__ inline float load(const void *data, int dtype, int64_t i) {
  return dtype == KDA_BF16 ? bf16_to_float(static_cast<const uint16_t *>(data)[i])
                           : static_cast<const float *>(data)[i];
}

__device__ inline void store(void *data, int dtype, int64_t i, float x) {
  if (dtype == KDA_BF16) static_cast<uint16_t *>(data)[i] = float_to_bf16(x);
  else static_cast<float *>(data)[i] = x;
}

__device__ inline float load(const kda_tensor &x, int64_t i) { return load(x.data, x.dtype, i); }
__device__ inline void store(const kda_tensor &x, int64_t i, float y) { store(x.data, x.dtype, i, y); }

// Element index of x[b, t, h, 0]. 64 bits: tensors of more than 2^31 elements are served.
__device__ inline int64_t row(const kda_tensor &x, int64_t b, int64_t t, int h) {
  return b * x.stride_batch + t * x.stride_token + h * x.stride_head;
}

// ---- activations (contract: meaning of gates, norm, sigmoid)

// 1 / (1 + e^-x). __expf errs by |x| * 1e-7, __fdividef gives 0 for e^-x = inf.
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// log(1 + e^x) = max(x, 0) + log(1 + y) with y = e^-|x| <= 1, and log(1 + y) = 2 artanh(y / (2 + y)):
// an odd series in s <= 1/3 that keeps all digits where y is tiny and needs no branch.
__device__ inline float softplus(float x) {
  const float y = __expf(-fabsf(x)), s = __fdividef(y, 2.0f + y), ss = s * s;
  float p = 1.0f / 15.0f;  // the next term, 3^-16 / 17, is 1e-9
  p = fmaf(p, ss, 1.0f / 13.0f);
  p = fmaf(p, ss, 1.0f / 11.0f);
  p = fmaf(p, ss, 1.0f / 9.0f);
  p = fmaf(p, ss, 1.0f / 7.0f);
  p = fmaf(p, ss, 1.0f / 5.0f);
  p = fmaf(p, ss, 1.0f / 3.0f);
  p = fmaf(p, ss, 1.0f);
  return fmaxf(x, 0.0f) + 2.0f * s * p;
}

// e^g. A weak gate multiplies the state thousands of times, so near 1 the factor must be rounded to
// nearest: there the series is exact to half an ulp, where the hardware's ex2 is not. -inf gives 0.
__device__ inline float decay(float g) {
  float p = fmaf(g, 1.0f / 5.0f, 1.0f);
  p = fmaf(g * (1.0f / 4.0f), p, 1.0f);
  p = fmaf(g * (1.0f / 3.0f), p, 1.0f);
  p = fmaf(g * (1.0f / 2.0f), p, 1.0f);
  p = fmaf(g, p, 1.0f);
  return fabsf(g) < 0.125f ? p : __expf(g);  // the next term, 0.125^6 / 6!, is 5e-9
}

// What turns the raw g of one value head into a log decay.
struct Gate {
  int kind;           // kda_gate
  float rate;         // exp(A_log)
  float lower_bound;
  const float *bias;  // [K], or NULL

  __device__ float bias_at(int c) const { return bias ? bias[c] : 0.0f; }

  __device__ float sigmoid_gate(float g, float bias_c) const {
    return lower_bound * sigmoid(rate * (g + bias_c));
  }
  __device__ float softplus_gate(float g, float bias_c) const { return -rate * softplus(g + bias_c); }

  __device__ float log_decay(float g, float bias_c) const {
    if (kind == KDA_GATE_SIGMOID) return sigmoid_gate(g, bias_c);
    if (kind == KDA_GATE_SOFTPLUS) return softplus_gate(g, bias_c);
    return g;
  }
};

__device__ inline Gate gate_of(const kda_args &a, int hv) {
  const bool raw = a.gate == KDA_GATE_SOFTPLUS || a.gate == KDA_GATE_SIGMOID;
  return {a.gate, raw && a.A_log ? expf(a.A_log[hv]) : 1.0f, a.lower_bound,
          raw && a.dt_bias ? a.dt_bias + int64_t(hv) * a.dim_k : nullptr};
}

__device__ inline float activate_beta(int kind, float x) {
  if (kind == KDA_BETA_PLAIN) return x;
  return kind == KDA_BETA_2SIGMOID ? 2.0f * sigmoid(x) : sigmoid(x);
}

constexpr float kNormEps = 1e-6f;  // l2norm: x * rsqrt(sum x^2 + 1e-6)

// ---- sequences and states

__device__ inline int64_t cu_seqlen(const kda_args &a, int64_t n) {
  const int64_t t = a.cu_seqlens_bits == 32 ? static_cast<const int32_t *>(a.cu_seqlens)[n]
                                            : static_cast<const int64_t *>(a.cu_seqlens)[n];
  return t < 0 ? 0 : t > a.tokens ? a.tokens : t;  // never trusted
}

// Tokens [begin, end) of batch row b; rows [end, tail) belong to no sequence and give o = 0.
struct Span {
  int64_t b, begin, end, tail;
};

__device__ inline Span span_of(const kda_args &a, int64_t n) {
  if (!a.cu_seqlens_bits) return {n, 0, a.tokens, a.tokens};
  const int64_t begin = cu_seqlen(a, n), end = cu_seqlen(a, n + 1);
  return {0, begin, end < begin ? begin : end, n + 1 == a.sequences ? a.tokens : end};
}

// Element index of S[c, x] (channel c of K, column x of V) in slot n of a state buffer.
__device__ inline int64_t state_at(const kda_args &a, int64_t n, int hv, int c, int x) {
  const int64_t base = (n * a.heads_v + hv) * int64_t(a.dim_k) * a.dim_v;
  return base + (a.state_v_first ? int64_t(x) * a.dim_k + c : int64_t(c) * a.dim_v + x);
}

}  // namespace kda

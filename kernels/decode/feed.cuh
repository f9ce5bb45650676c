// What every decode kernel shares: 16 bytes of state, where a block works, and the warp that feeds it tokens.
#pragma once

#include "../common/host.h"
#include "../common/warp.cuh"

namespace kda::decode {

constexpr int kFeeder = 32;       // threads that only activate tokens

// 16 bytes of state: 4 fp32 or 8 bf16 numbers. Streaming: the state is touched once and never fits L2.
template <typename T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int N = 4;
  using Raw = float4;
  __device__ static void unpack(Raw raw, float *x) {
    x[0] = raw.x, x[1] = raw.y, x[2] = raw.z, x[3] = raw.w;
  }
  __device__ static Raw pack(const float *x) { return make_float4(x[0], x[1], x[2], x[3]); }
};

template <>
struct Vec<uint16_t> {  // bf16
  static constexpr int N = 8;
  using Raw = uint4;
  __device__ static void unpack(Raw raw, float *x) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  __device__ static Raw pack(const float *x) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = kda::float_to_bf16(x[2 * i]) | uint32_t(kda::float_to_bf16(x[2 * i + 1])) << 16;
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

// 16 bytes at element i of a state buffer.
template <typename T>
__device__ typename Vec<T>::Raw load_16(const void *state, int64_t i) {
  using Raw = typename Vec<T>::Raw;
  return __ldcs(reinterpret_cast<const Raw *>(static_cast<const T *>(state) + i));
}

template <typename T>
__device__ void store_16(void *state, int64_t i, const float *x) {
  using Raw = typename Vec<T>::Raw;
  __stcs(reinterpret_cast<Raw *>(static_cast<T *>(state) + i), Vec<T>::pack(x));
}

// Where a block works: sequence n, value head hv, its slab of columns, its slot of the state buffers.
struct Place {
  int n, hv, h, slab;
  int64_t slot;
  bool skipped;
  kda::Span span;
};

__device__ Place place_of(const kda_args &a, int slabs) {
  Place p;
  p.slab = blockIdx.x % slabs;
  p.hv = blockIdx.x / slabs % a.heads_v;
  p.n = blockIdx.x / slabs / a.heads_v;
  p.h = p.hv / (a.heads_v / a.heads_qk);
  p.slot = a.state_indices ? a.state_indices[p.n] : p.n;
  p.skipped = a.state_indices && (p.slot < 0 || p.slot >= a.state_slots);
  p.span = kda::span_of(a, p.n);
  return p;
}

// Two tokens in shared memory: the feeder writes one while the others read the other.
template <int K, int COLUMNS>
struct Feed {
  alignas(16) kda::Token<K> token[2];
  float v[2][COLUMNS];
  float beta[2];
  float qk[2];
};

// The two roles meet here from different branches, where barrier 0 (__syncthreads) may not be used.
template <int THREADS>
__device__ void meet() {
  asm volatile("barrier.sync 1, %0;" ::"n"(THREADS) : "memory");
}

// The last warp's whole life: activate token after token. The barrier that publishes token t also says
// that token t - 1 may be read no more once token t + 1 is written, so one barrier a token is enough;
// BARRIERS is how many the readers' loop has.
template <int BARRIERS, int THREADS, int K, int COLUMNS>
__device__ void feed_tokens(const kda_args &a, const Place &p, Feed<K, COLUMNS> &feed) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int64_t t = p.span.begin; t < p.span.end; ++t) {
    // Every load first: one trip to memory, beside the state's
    kda::RawToken<K> raw = {kda::row_of(a.q, p.span.b, t, p.h), kda::row_of(a.k, p.span.b, t, p.h),
                            kda::row_of(a.g, p.span.b, t, p.hv)};
    const kda::Row v = kda::row_of(a.v, p.span.b, t, p.hv);
    const kda::Row beta = kda::row_of(a.beta, p.span.b, t, p.hv);
    uint32_t v_bits[(COLUMNS + 31) / 32], beta_bits[1];
    raw.load(K, lane);
    v.bits(p.slab * COLUMNS + lane, a.dim_v, v_bits);
    beta.bits(0, 1, beta_bits);
    const kda::Gate gate = kda::gate_of(a, p.hv);
    float bias[K / 32];
    kda::load_bias<K>(gate, K, lane, bias);

    const int i = (t - p.span.begin) % 2;
    const float qk = kda::activate<K>(a, gate, bias, raw, lane, &feed.token[i]);
#pragma unroll
    for (int x = lane; x < COLUMNS; x += 32) feed.v[i][x] = v.value(v_bits[x / 32]);
    if (lane == 0) {
      feed.beta[i] = kda::activate_beta(a.beta_kind, beta.value(beta_bits[0]));
      feed.qk[i] = qk;
    }
    for (int j = 0; j < BARRIERS; ++j) meet<THREADS>();
  }
}

// o = 0 for columns [first, first + columns) of tokens [begin, end): skipped sequences, rows of none.
__device__ void zero_o(const kda_args &a, const Place &p, int64_t begin, int64_t end, int first,
                       int columns) {
#pragma unroll 1
  for (int64_t t = begin; t < end; ++t)
#pragma unroll 1
    for (int x = first + threadIdx.x; x < min(first + columns, a.dim_v); x += blockDim.x)
      kda::store(a.o, kda::row(a.o, p.span.b, t, p.hv) + x, 0.0f);
}

}  // namespace kda::decode

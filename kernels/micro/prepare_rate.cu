// What can one SM prepare, and what does each fused step cost there?
//
// Why it decides: cuDNN's fused kernel takes twice as long when norm, gate and sigmoid are inside it (1.40 against 0.78 ms at T = 8192,
// H = 96), and the cycle model of a fused kernel says that preparation, not the recurrence, is its limit.
// Method: 256 threads, one block an SM; raw q, k, g [64,128] bf16 lie in shared memory; a thread owns two channels of 16 rows. A chunk: log decay,
// its prefix sums over 16 rows, then four tiles of bf16: k e^p, q e^p, k e^-p, k e^(s - p), in place and into a fourth tile. No products, no
// copies. Steps are added one at a time; cycles a chunk of 64 tokens and SM. The tiles are compared with the host's.
// Prediction. An instruction of a thread for its two elements of a row is 8 warps x 16 rows / 4 a cycle = 32 cycles of issue:
//   factors   3 LDS, 6 unpack, 2 scale g, 2 add, 4 ex2, 2 mul s, 8 mul, 4 pack, 4 STS = 35: 1,120 cycles of issue; the special unit has 2 ex2 an
//             element, 2 x 8,192 / 16 = 1,024; shared memory 7 tiles of 128 rows of 128 B, 896. At 70 % of issue: 1,600.
//   gate      by tanh: 2 fma, 2 tanh, 2 fma more, 2 multiplications less: 4 x 32 = 128 issued, special unit 1,536 in all: +350. tanh.approx errs by
//             2^-11, as much as the whole sigmoid of a weak logit (-8.5: 2e-4), so it can only serve strong gates; by ex2 and rcp: 2 fma, 2 ex2,
//             2 add, 2 rcp, special unit 2,048 in all: +700
//   norm      64 + 64 rows, two threads each: 8 LDS.128, 64 unpack, 64 fma = 136 x 8 / 4 = 272, a barrier 50, 4 mul and rounding 3 a pair 224: +550
//   sigmoid   of beta, 64 numbers a chunk: +10
#include <cstring>

#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

constexpr int C = 64, K = 128, BLOCK = 16, TILE = C * K * 2, CHUNKS = 64;
constexpr float LOG2E = 1.4426950408889634f;

struct Shared {
  unsigned char q[TILE], k[TILE], g[TILE], inverse[TILE];  // raw rows, then q e^p, k e^p, k e^(s - p), k e^-p
  float norm[2][C], beta[C];
};


// Word of channels c, c + 1 in row r: 16-byte units of a 256-byte row are XORed with the row, so that neither a warp along
// a row nor eight rows of one unit meet in a bank.
__device__ __forceinline__ int word_at(int r, int c) { return r * 256 + ((c / 8 ^ (r & 7)) << 4) + c % 8 * 2; }

enum Gate { LOG, TANH, EXACT };

template <Gate GATE, bool NORM, bool BETA>
__device__ __forceinline__ void prepare(Shared &sm, float rate, float2 bias, float raw_beta) {
  const int tid = threadIdx.x, channel = 2 * (tid & 63), row0 = tid / 64 * BLOCK;
  if constexpr (NORM) {
    const int r = tid / 2 % C, half = tid & 1;
    const unsigned char *row = (tid < 128 ? sm.q : sm.k) + r * 256;
    float sum = 0.f;
#pragma unroll
    for (int u = 0; u < 8; ++u) {
      const uint4 x = *reinterpret_cast<const uint4 *>(row + ((half * 8 + u ^ (r & 7)) << 4));
      for (uint32_t w : {x.x, x.y, x.z, x.w}) sum = fmaf(low_bf16(w), low_bf16(w), fmaf(high_bf16(w), high_bf16(w), sum));
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    if (half == 0) sm.norm[tid / 128][r] = rsqrt_approx(sum + 1e-6f);
  }
  if constexpr (BETA)
    if (tid < C) sm.beta[tid] = reciprocal(1.f + exp2_approx(-LOG2E * raw_beta));
  if constexpr (NORM || BETA) __syncthreads();
  float2 p[BLOCK], sum{0.f, 0.f};
#pragma unroll
  for (int i = 0; i < BLOCK; ++i) {
    const uint32_t raw = *reinterpret_cast<const uint32_t *>(sm.g + word_at(row0 + i, channel));
    float2 g{low_bf16(raw), high_bf16(raw)};
    if constexpr (GATE == TANH) {  // -5 sigmoid(2 rate g + 2 bias) log2 e, and sigmoid(2 x) = (1 + tanh(x)) / 2
      g.x = fmaf(tanh_approx(fmaf(rate, g.x, bias.x)), -2.5f * LOG2E, -2.5f * LOG2E);
      g.y = fmaf(tanh_approx(fmaf(rate, g.y, bias.y)), -2.5f * LOG2E, -2.5f * LOG2E);
    } else if constexpr (GATE == EXACT) {
      g.x = -5.f * LOG2E * reciprocal(1.f + exp2_approx(-2.f * LOG2E * fmaf(rate, g.x, bias.x)));
      g.y = -5.f * LOG2E * reciprocal(1.f + exp2_approx(-2.f * LOG2E * fmaf(rate, g.y, bias.y)));
    } else {
      g.x *= LOG2E, g.y *= LOG2E;
    }
    sum.x += g.x, sum.y += g.y;
    p[i] = sum;
  }
  const float2 all{exp2_approx(sum.x), exp2_approx(sum.y)};
#pragma unroll
  for (int i = 0; i < BLOCK; ++i) {
    const int at = word_at(row0 + i, channel);
    uint32_t q = *reinterpret_cast<const uint32_t *>(sm.q + at), k = *reinterpret_cast<const uint32_t *>(sm.k + at);
    const float2 up{exp2_approx(p[i].x), exp2_approx(p[i].y)}, down{exp2_approx(-p[i].x), exp2_approx(-p[i].y)};
    float qx = low_bf16(q), qy = high_bf16(q);
    if constexpr (NORM) {
      const float nq = sm.norm[0][row0 + i], nk = sm.norm[1][row0 + i];
      qx *= nq, qy *= nq;
      k = pack_bf16(low_bf16(k) * nk, high_bf16(k) * nk);
    }
    const float kx = low_bf16(k), ky = high_bf16(k), ix = kx * down.x, iy = ky * down.y;
    *reinterpret_cast<uint32_t *>(sm.q + at) = pack_bf16(qx * up.x, qy * up.y);
    *reinterpret_cast<uint32_t *>(sm.k + at) = pack_bf16(kx * up.x, ky * up.y);
    *reinterpret_cast<uint32_t *>(sm.inverse + at) = pack_bf16(ix, iy);
    *reinterpret_cast<uint32_t *>(sm.g + at) = pack_bf16(ix * all.x, iy * all.y);
  }
}

// The raw numbers of a chunk, the same every time: q, k around 0.5, a gate around -2.
__host__ __device__ inline float raw_at(int what, int r, int c) {
  const uint32_t x = (what * 64u + r) * 128u + c, y = x * 2654435761u;
  const float u = (y >> 16 & 255) / 256.f;  // exact in bf16
  return what == 2 ? -u * 3.f / 4.f : u - 0.25f;
}

template <Gate GATE, bool NORM, bool BETA>
__global__ void __launch_bounds__(256, 1) run(float rate, const float *beta, long long *clocks, unsigned char *tiles) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared &sm = *reinterpret_cast<Shared *>(raw);
  const int channel = 2 * (threadIdx.x & 63), row0 = threadIdx.x / 64 * BLOCK;
  auto fill = [&] {
    for (int i = 0; i < BLOCK; ++i) {
      const int at = word_at(row0 + i, channel), r = row0 + i;
      *reinterpret_cast<uint32_t *>(sm.q + at) = pack_bf16(raw_at(0, r, channel), raw_at(0, r, channel + 1));
      *reinterpret_cast<uint32_t *>(sm.k + at) = pack_bf16(raw_at(1, r, channel), raw_at(1, r, channel + 1));
      *reinterpret_cast<uint32_t *>(sm.g + at) = pack_bf16(raw_at(2, r, channel), raw_at(2, r, channel + 1));
    }
    __syncthreads();
  };
  fill();
  const float raw_beta = threadIdx.x < C ? beta[threadIdx.x] : 0.f;
  const long long begin = clock64();
#pragma unroll 1
  for (int i = 0; i < CHUNKS; ++i) {  // on what the last round left: numbers do not change the time, and stay finite
    prepare<GATE, NORM, BETA>(sm, rate, float2{rate, rate}, raw_beta);
    __syncthreads();
  }
  const long long end = clock64();
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
  fill();
  prepare<GATE, NORM, BETA>(sm, rate, float2{rate, rate}, raw_beta);
  __syncthreads();
  if (blockIdx.x == 0)
    for (int i = threadIdx.x; i < 4 * TILE; i += 256) tiles[i] = raw[i];
}

// Worst difference from fp64, relative to the largest number of its tile, over the four tiles.
double worst(const std::vector<unsigned char> &tiles, bool gate, bool norm, double rate) {
  std::vector<double> want[4];
  for (auto &x : want) x.resize(C * K);
  for (int block = 0; block < C / BLOCK; ++block)
    for (int c = 0; c < K; ++c) {
      double p[BLOCK], sum = 0;
      for (int i = 0; i < BLOCK; ++i) {
        const double g = raw_at(2, block * BLOCK + i, c);
        p[i] = sum += gate ? -5 / (1 + std::exp(-2 * (rate * g + rate))) : g;
      }
      for (int i = 0; i < BLOCK; ++i) {
        const int r = block * BLOCK + i;
        double q = raw_at(0, r, c), k = raw_at(1, r, c);
        if (norm) {
          double qq = 1e-6, kk = 1e-6;
          for (int j = 0; j < K; ++j) qq += raw_at(0, r, j) * raw_at(0, r, j), kk += raw_at(1, r, j) * raw_at(1, r, j);
          q /= std::sqrt(qq), k /= std::sqrt(kk);
        }
        const double values[4] = {q * std::exp(p[i]), k * std::exp(p[i]), k * std::exp(sum - p[i]), k * std::exp(-p[i])};
        for (int what = 0; what < 4; ++what) want[what][r * K + c] = values[what];
      }
    }
  double off = 0;
  for (int what = 0; what < 4; ++what) {
    for (int r = 0; r < C; ++r)
      for (int c = 0; c < K; ++c) {
        const int at = what * TILE + r * 256 + ((c / 8 ^ (r & 7)) << 4) + c % 8 * 2;
        const uint32_t bits = (tiles[at] | tiles[at + 1] << 8) << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        const double y = want[what][r * K + c];
        off = std::max(off, std::abs(x - y) / (std::abs(y) + 1e-3));
      }
  }
  return off;
}

template <Gate GATE, bool NORM, bool BETA>
double measure(const char *name, double predicted) {
  const int blocks = sms();
  const float rate = 0.25f;
  unsigned char *tiles = device<unsigned char>(4 * TILE);
  const float *beta = device<float>(C);
  allow_shared(run<GATE, NORM, BETA>, 120 * 1024);
  const double c = cycles(blocks, [&](long long *clocks) { run<GATE, NORM, BETA><<<blocks, 256, 120 * 1024>>>(rate, beta, clocks, tiles); }) / CHUNKS;
  const double off = worst(host(tiles, 4 * TILE), GATE != LOG, NORM, rate);
  std::fprintf(stderr, "%s: worst relative difference %.1e\n", name, off);
  expect(off < 0.1, "tiles of factors");  // tanh.approx, 5e-4 of a sum of 16 gates of up to 5, exponentiated
  row(name, c, "cycles", predicted);
  return c;
}

// The log decay of logits first, first + step, ... by each formula.
__global__ void decays(float first, float step, float *by_tanh, float *by_exp) {
  const float logit = first + step * threadIdx.x;
  by_tanh[threadIdx.x] = fmaf(tanh_approx(0.5f * logit), -2.5f, -2.5f);
  by_exp[threadIdx.x] = -5.f * reciprocal(1.f + exp2_approx(-LOG2E * logit));
}
double worst_decay(float first, float last, bool by_tanh) {
  constexpr int N = 1024;
  const float step = (last - first) / N;
  float *out = device<float>(2 * N);
  decays<<<1, N>>>(first, step, out, out + N);
  const auto x = host(out + (by_tanh ? 0 : N), N);
  double worst = 0;
  for (int i = 0; i < N; ++i) worst = std::max(worst, std::abs(x[i] / (-5 / (1 + std::exp(-double(first + step * i)))) - 1));
  return worst;
}

int main() {
  const double factors = measure<LOG, false, false>("factors from log gates", 1600);
  const double tanh = measure<TANH, false, false>("factors and gate by tanh", 1950);
  const double exact = measure<EXACT, false, false>("factors and gate by ex2 and rcp", 2300);
  const double norm = measure<LOG, true, false>("factors and norm", 2150);
  const double beta = measure<LOG, false, true>("factors and sigmoid of beta", 1610);
  measure<EXACT, true, true>("factors, gate, norm and sigmoid", 2860);
  row("the gate by tanh costs", tanh - factors, "cycles", 350);
  row("the gate by ex2 and rcp costs", exact - factors, "cycles", 700);
  row("the norm costs", norm - factors, "cycles", 550);
  row("the sigmoid of beta costs", beta - factors, "cycles", 10);
  row("log decay by tanh, logits -1.5 to 3 (strong)", worst_decay(-1.5f, 3, true), "relative error", 3e-3);
  row("log decay by tanh, logits -7.5 to -3.5 (weak)", worst_decay(-7.5f, -3.5f, true), "relative error", 0.4);
  row("log decay by tanh, logits -11 to -6 (long)", worst_decay(-11, -6, true), "relative error", 15);
  row("log decay by ex2 and rcp, logits -11 to 3", worst_decay(-11, 3, false), "relative error", 1e-6);
}

/* Calls the cpu rung as a C++ program would: kda_lab.h, the library, nothing else.
 *
 * Two packed sequences, an empty one between them, grouped heads, both gates of the released models, states in
 * and out. Compares with the recurrence of the header's comment in double precision, and checks each refusal.
 * Prints one line per check; exits with the number of failures.
 */
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kda_lab.h"

constexpr int T = 45, N = 3, H = 2, HV = 4, K = 24, V = 20;
const int64_t CU[N + 1] = {0, 17, 17, 40}; /* tokens 40 .. 44 belong to nobody */

static int failures = 0;

static void check(bool ok, const char *what) {
  std::printf("%s: %s\n", ok ? "ok" : "FAILED", what);
  failures += !ok;
}

static std::vector<float> random_floats(size_t n, float low, float high) {
  std::vector<float> x(n);
  for (float &value : x) value = low + (high - low) * static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX);
  return x;
}

struct Problem {
  std::vector<float> q = random_floats(T * H * K, -1, 1), k = random_floats(T * H * K, -1, 1);
  std::vector<float> v = random_floats(T * HV * V, -1, 1), g = random_floats(T * HV * K, -4, 4);
  std::vector<float> beta = random_floats(T * HV, -3, 3), o = std::vector<float>(T * HV * V, NAN);
  std::vector<float> A_log = random_floats(HV, -1, 1), dt_bias = random_floats(HV * K, -1, 1);
  std::vector<float> first = random_floats(N * HV * K * V, -1, 1), last = std::vector<float>(N * HV * K * V, NAN);
  std::vector<char> memory;
  kda_args args{};

  Problem(kda_gate gate) {
    auto tensor = [](std::vector<float> &x, int64_t heads, int64_t dim) {
      return kda_tensor{x.data(), T * heads * dim, heads * dim, dim, KDA_F32, 0};
    };
    args.abi_version = KDA_ABI_VERSION;
    args.struct_bytes = sizeof args;
    args.batch = 1, args.tokens = T, args.sequences = N;
    args.heads_qk = H, args.heads_v = HV, args.dim_k = K, args.dim_v = V;
    args.q = tensor(q, H, K), args.k = tensor(k, H, K);
    args.v = tensor(v, HV, V), args.o = tensor(o, HV, V);
    args.g = tensor(g, HV, K), args.beta = tensor(beta, HV, 1);
    args.A_log = A_log.data(), args.dt_bias = dt_bias.data();
    args.scale = 0.25f, args.lower_bound = -5.f;
    args.gate = gate, args.beta_kind = KDA_BETA_2SIGMOID, args.l2norm = 1;
    args.cu_seqlens = CU, args.cu_seqlens_bits = 64;
    args.initial_state = first.data(), args.final_state = last.data();
    args.state_dtype = KDA_F32;
    memory.resize(kda_cpu_workspace_bytes(&args) + 256);
    char *at = memory.data();
    args.workspace = at + (256 - reinterpret_cast<uintptr_t>(at) % 256) % 256;
    args.workspace_bytes = kda_cpu_workspace_bytes(&args);
  }

  /* Relative distance of o and of the final states to the recurrence in double. */
  double error() const {
    double wrong = 0, size = 0;
    auto compare = [&](double got, double want) { wrong += (got - want) * (got - want), size += want * want; };
    for (int n = 0; n < N; ++n)
      for (int hv = 0; hv < HV; ++hv) {
        const int h = hv / (HV / H);
        std::vector<double> S(first.begin() + (n * HV + hv) * K * V, first.begin() + (n * HV + hv + 1) * K * V);
        for (int64_t t = CU[n]; t < CU[n + 1]; ++t) {
          const float *kt = &k[(t * H + h) * K], *qt = &q[(t * H + h) * K], *vt = &v[(t * HV + hv) * V];
          double kk = 1e-6, qq = 1e-6;
          for (int c = 0; c < K; ++c) kk += double(kt[c]) * kt[c], qq += double(qt[c]) * qt[c];
          for (int c = 0; c < K; ++c) {
            const double x = double(g[(t * HV + hv) * K + c]) + dt_bias[hv * K + c], A = std::exp(double(A_log[hv]));
            const double log_decay = args.gate == KDA_GATE_SOFTPLUS ? -A * std::log1p(std::exp(x)) : -5 / (1 + std::exp(-A * x));
            for (int d = 0; d < V; ++d) S[c * V + d] *= std::exp(log_decay);
          }
          const double b = 2 / (1 + std::exp(-double(beta[t * HV + hv])));
          for (int d = 0; d < V; ++d) {
            double recalled = 0, out = 0;
            for (int c = 0; c < K; ++c) recalled += S[c * V + d] * kt[c] / std::sqrt(kk);
            const double u = b * (vt[d] - recalled);
            for (int c = 0; c < K; ++c) S[c * V + d] += kt[c] / std::sqrt(kk) * u;
            for (int c = 0; c < K; ++c) out += S[c * V + d] * qt[c] / std::sqrt(qq);
            compare(o[(t * HV + hv) * V + d], 0.25 * out);
          }
        }
        for (int i = 0; i < K * V; ++i) compare(last[(n * HV + hv) * K * V + i], S[i]);
      }
    return std::sqrt(wrong / size);
  }
};

int main() {
  for (kda_gate gate : {KDA_GATE_SIGMOID, KDA_GATE_SOFTPLUS}) {
    Problem p(gate);
    check(!kda_cpu_declines(&p.args), "the call is not declined");
    check(kda_cpu_forward(&p.args) == KDA_OK, "forward succeeds");
    check(p.error() < 1e-6, "o and states equal the recurrence in double precision");
    bool zeros = true;
    for (int i = 40 * HV * V; i < T * HV * V; ++i) zeros = zeros && p.o[i] == 0;
    check(zeros, "tokens past the last sequence give 0");
  }
  Problem p(KDA_GATE_LOG_BOUNDED);
  const kda_args good = p.args;
  auto status = [&](const char *what, kda_status want) {
    check(kda_cpu_forward(&p.args) == want && std::strlen(kda_cpu_error()) > 0, what);
    p.args = good;
  };
  p.args.abi_version += 1;
  status("another ABI version is invalid", KDA_INVALID);
  p.args.struct_bytes -= 8;
  status("another struct size is invalid", KDA_INVALID);
  p.args.heads_v = 3;
  status("HV that is no multiple of H is invalid", KDA_INVALID);
  p.args.q.data = nullptr;
  status("a missing tensor is invalid", KDA_INVALID);
  p.args.gate = 9;
  status("an unknown gate is invalid", KDA_INVALID);
  p.args.state_dtype = KDA_BF16;
  status("bf16 states are unsupported", KDA_UNSUPPORTED);
  p.args.workspace_bytes -= 1;
  status("a small workspace is refused", KDA_WORKSPACE);
  p.args.workspace = static_cast<char *>(p.args.workspace) + 4;
  status("a misaligned workspace is refused", KDA_WORKSPACE);
  return failures;
}

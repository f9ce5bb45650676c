// v0: the equation as written.
//
// Idea       One thread block per (sequence, value head). The state S [K,V] lies in shared memory, and
//            thread x owns its column x: S^T k and S^T q are then loops over the thread's own numbers.
// Changed    Nothing yet: this is the first rung. It reads like the recurrence in kda_lab.h.
// Predicted  Every state element is read three times and written twice in shared memory for each token,
//            128 lanes at a time: about 5 * 16384 / 128 = 640 cycles of shared memory a token and head,
//            plus three barriers and a load nobody started early (about 1500 cycles). 8192 tokens of 96
//            heads at three blocks an SM: 10 to 15 ms on an H100. fla's chunked Triton kernels take 3.2.
// Ledger     rung v0, direction forward: 8192-H96, mixed6-H96, 1024x8-H96 (measured, lost: NOTES.md).
//
// Serves     sm_80 and up; fp32 or bf16; every gate and beta kind; any K up to 256, any V.

#include "../common/device.cuh"
#include "../common/host.h"

namespace {

constexpr int kMaxK = 256;

// Columns of one block. K * columns * 4 bytes stay at 64 KB or less, which every GPU from sm_80 has;
// only V beyond it takes a second block for the same (sequence, head).
int columns_of(const kda_args *a) {
  const int most = a->dim_k <= 128 ? 128 : 64;
  return a->dim_v >= most ? most : (a->dim_v + 31) / 32 * 32;  // whole warps
}

__global__ void recurrence(const __grid_constant__ kda_args a, int slabs) {
  const int K = a.dim_k, V = a.dim_v, columns = blockDim.x;
  extern __shared__ float shared[];
  float *S = shared;           // [K, columns]
  float *q = S + K * columns;  // [K]
  float *k = q + K;            // [K]
  float *d = k + K;            // [K]  exp(g): the decay

  const int column = threadIdx.x;
  const int x = blockIdx.x % slabs * columns + column;  // this thread's column of V
  const int hv = blockIdx.x / slabs % a.heads_v;        // value head
  const int n = blockIdx.x / slabs / a.heads_v;         // sequence
  const int h = hv / (a.heads_v / a.heads_qk);          // its q/k head
  const kda::Span span = kda::span_of(a, n);
  const kda::Gate gate = kda::gate_of(a, hv);

  for (int c = 0; c < K; ++c)
    S[c * columns + column] =
        a.initial_state && x < V
            ? kda::load(a.initial_state, a.state_dtype, kda::state_at(a, n, hv, c, x))
            : 0.0f;

  for (int64_t t = span.begin; t < span.end; ++t) {
    __syncthreads();  // nobody reads the last token's q, k, d any more
    for (int c = column; c < K; c += columns) {
      q[c] = kda::load(a.q, kda::row(a.q, span.b, t, h) + c);
      k[c] = kda::load(a.k, kda::row(a.k, span.b, t, h) + c);
      const float g = kda::load(a.g, kda::row(a.g, span.b, t, hv) + c);
      d[c] = kda::decay(gate.log_decay(g, gate.bias_at(c)));
    }
    __syncthreads();

    float q_scale = a.scale, k_scale = 1.0f;
    if (a.l2norm) {
      float qq = 0.0f, kk = 0.0f;
      for (int c = 0; c < K; ++c) qq += q[c] * q[c], kk += k[c] * k[c];
      q_scale *= rsqrtf(qq + kda::kNormEps);
      k_scale *= rsqrtf(kk + kda::kNormEps);
    }
    if (x < V) {
      const float v = kda::load(a.v, kda::row(a.v, span.b, t, hv) + x);
      const float beta =
          kda::activate_beta(a.beta_kind, kda::load(a.beta, kda::row(a.beta, span.b, t, hv)));

      for (int c = 0; c < K; ++c) S[c * columns + column] *= d[c];  // S <- Diag(exp(g)) S

      float read = 0.0f;  // S^T k
      for (int c = 0; c < K; ++c) read += S[c * columns + column] * k[c];
      const float u = beta * (v - k_scale * read);  // u = beta (v - S^T k)

      for (int c = 0; c < K; ++c) S[c * columns + column] += k_scale * k[c] * u;  // S <- S + k u^T

      float o = 0.0f;  // S^T q
      for (int c = 0; c < K; ++c) o += S[c * columns + column] * q[c];
      kda::store(a.o, kda::row(a.o, span.b, t, hv) + x, q_scale * o);
    }
  }

  if (x >= V) return;
  for (int64_t t = span.end; t < span.tail; ++t)  // rows of no sequence
    kda::store(a.o, kda::row(a.o, span.b, t, hv) + x, 0.0f);
  if (a.final_state)
    for (int c = 0; c < K; ++c)
      kda::store(a.final_state, a.state_dtype, kda::state_at(a, n, hv, c, x),
                 S[c * columns + column]);
}

}  // namespace

extern "C" {

const char *kda_v0_declines(const kda_args *a) {
  if (const char *why = kda::invalid(a)) return why;
  if (a->dim_k > kMaxK) return "v0 serves K up to 256";
  if (a->state_indices) return "state_indices: only decode serves paged states";
  return nullptr;
}

int64_t kda_v0_workspace_bytes(const kda_args *) { return 0; }

kda_status kda_v0_forward(const kda_args *a) {
  if (const char *why = kda::invalid(a)) return kda::fail(KDA_INVALID, why);
  if (const char *why = kda_v0_declines(a)) return kda::fail(KDA_UNSUPPORTED, why);
  const int columns = columns_of(a);
  const int slabs = (a->dim_v + columns - 1) / columns;
  const int64_t shared = (int64_t(a->dim_k) * columns + 3 * a->dim_k) * int64_t(sizeof(float));
  return kda::launch(recurrence, a->sequences * a->heads_v * slabs, columns, shared, a->stream, "v0",
                     *a, slabs);
}

const char *kda_v0_error(void) { return kda::error_text; }

}  // extern "C"

// v2: chunks of 16 tokens on tensor cores.
//
// Idea. The recurrence is serial in tokens, but inside a chunk it is linear algebra (kernels.md 2): with G the running sum of
// log decays, L_ij = beta_i <k_i e^(G_i), k_j e^-(G_j)> below the diagonal, T' = (I + L)^-1 diag(beta) and M the same product
// of queries and keys, 16 tokens take
//     U = T' (V - K~ S)      O = Q~ S + M U      S <- diag(e^(G_C)) S + K-^T U
// which are products of 16-row matrices: mma.sync m16n8k16, bf16 operands, fp32 accumulators.
//
// What changed since v1. v1 walks token by token on CUDA cores. v2 has two kernels: `prepare` (prepare.cuh) does all that needs
// no state, every chunk at once; `recur` (recur.cuh) walks over chunks, 16 tokens a step, the fp32 state in registers as
// accumulators. Loads are plain: 4 to 16 bytes a thread, copies of chunk images by cp.async.
//
// Exact at every gate: anchors in the middle of a chunk, and single channels summed pair by pair where a factor would
// overflow (prepare.cuh). So v2 serves unbounded gates too, -inf included.
//
// Predicted for one H100, T = 8192, H = 96: 512 chunks in a row, 96 rows of them, 132 SMs at 1.755 GHz, 3.0 TB/s:
//   bytes a token and head  prepare 768 in + 864 out, recur 864 + 256 in + 256 out = 3008: 0.79 ms if neither kernel stalls.
//   prepare  about 650 instructions a thread, 2600 warp instructions a chunk: 1100 cycles at 60 % of 4 a cycle; 372 chunks
//            an SM: 0.23 ms, under its 0.43 ms of traffic.
//   recur    a chunk on one SM, 4 warps of 32 value channels: 104 mma.sync a warp at about 6 cycles, 640 cycles; shared memory
//            4 x 27 ldmatrix.x4 x 4 + 200 = 630 cycles; the serial chain K~S -> R -> U -> S about 650. Not overlapped much, since
//            a barrier keeps the warps in step: 1000 cycles or 0.57 us a chunk, 0.29 ms, under its 0.36 ms of traffic.
//   Together 0.8 ms at best; 1.2 expected, since loads wait for plain latencies.
//
// Ledger rows: rung v2, direction forward.
#include "../common/host.h"
#include "prepare.cuh"
#include "recur.cuh"

namespace kda::v2 {

// Slots of the workspace: chunks of every sequence, and with cu_seqlens one spare a sequence (traits.cuh).
int64_t slots_of(const kda_args &a) {
  return a.cu_seqlens_bits ? a.tokens / C + a.sequences : a.batch * chunks_of(a.tokens);
}

int64_t workspace_of(const kda_args &a) { return slots_of(a) * a.heads_v * Chunk::BYTES; }

const char *declines(const kda_args &a) {
  if (a.dim_k != K || a.dim_v != V) return "K and V must be 128";
  if (a.q.dtype != KDA_BF16) return "q, k and v must be bf16";
  if (a.o.dtype != KDA_BF16) return "o must be bf16";
  for (const kda_tensor *x : {&a.q, &a.k, &a.v, &a.o, &a.g})
    if (!rows_are_16_byte(*x, K)) return "q, k, v, g and o must have rows that start at multiples of 16 bytes";
  for (const kda_tensor *x : {&a.v, &a.o})  // a chunk of rows is stepped over in 32 bits: registers are what recur is short of
    if (x->stride_token < 0 || x->stride_token > INT32_MAX / (2 * C)) return "token strides of v and o must be at most 2^26 elements";
  if (a.state_indices) return "state_indices are for decode";
  if (a.tokens > INT32_MAX) return "T must be below 2^31";
  if (slots_of(a) * a.heads_v > INT32_MAX) return "more than 2^31 - 1 chunks";
  return nullptr;
}

template <int GATE>
kda_status launch_prepare(const kda_args &a) {
  const auto kernel = a.g.dtype == KDA_F32 ? prepare<GATE, float2> : prepare<GATE, uint32_t>;
  return launch(kernel, slots_of(a) * a.heads_v, Prepare::THREADS, sizeof(PrepareShared), a.stream, "v2 prepare", a);
}

template <class R>
kda_status launch_recur(const kda_args &a) {
  return launch(recur<R>, a.sequences * a.heads_v * R::SLABS, R::THREADS, R::SHARED, a.stream, "v2 recur", a);
}

kda_status forward(const kda_args &a) {
  const kda_status status = a.gate == KDA_GATE_SIGMOID    ? launch_prepare<KDA_GATE_SIGMOID>(a)
                            : a.gate == KDA_GATE_SOFTPLUS ? launch_prepare<KDA_GATE_SOFTPLUS>(a)
                                                          : launch_prepare<KDA_GATE_LOG>(a);
  if (status != KDA_OK) return status;
  int device, sms;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (code != cudaSuccess) return fail_cuda("v2", code);
  // Few (sequence, head) pairs leave SMs idle: split the value channels until the slabs fill them.
  const int64_t pairs = a.sequences * a.heads_v;
  if (pairs * 4 <= sms) return launch_recur<Recur<2, 1>>(a);
  if (pairs * 2 <= sms) return launch_recur<Recur<4, 1>>(a);
  return launch_recur<Recur<4, 2>>(a);
}

}  // namespace kda::v2

extern "C" {

const char *kda_v2_declines(const kda_args *args) {
  const char *why = kda::invalid(args);
  return why ? why : kda::v2::declines(*args);
}

int64_t kda_v2_workspace_bytes(const kda_args *args) {
  return kda_v2_declines(args) ? 0 : kda::v2::workspace_of(*args);
}

kda_status kda_v2_forward(const kda_args *args) {
  if (const char *why = kda::invalid(args)) return kda::fail(KDA_INVALID, why);
  if (const char *why = kda::v2::declines(*args)) return kda::fail(KDA_UNSUPPORTED, why);
  const int64_t need = kda::v2::workspace_of(*args);
  if (need > 0 && (!args->workspace || reinterpret_cast<uintptr_t>(args->workspace) % 256 || args->workspace_bytes < need))
    return kda::fail(KDA_WORKSPACE, "v2 needs kda_v2_workspace_bytes() of workspace, aligned to 256 bytes");
  return kda::v2::forward(*args);
}

const char *kda_v2_error(void) { return kda::error_text; }
}

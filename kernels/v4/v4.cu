// v4: chunks of 64 tokens, re-based every 16, and the state in the accumulators of Hopper's warpgroup products.
//
// Idea. v2's recurrence is a chain of 16-token steps, and a step costs about 1.15 us whatever its width: latency of the loop
// through registers, shared memory and tensor cores. A step of 64 tokens does four times the work in little more time,
// because wgmma takes whole 64-row products from shared memory in the background. The mathematics is v2's:
//     U = T' (V - K~ S)      O = Q~ S + M U      S <- diag(e^(G_C)) S + K-^T U
// Over 64 tokens a gate of -5 spans e^-320, so no chunk-wide e^-G exists in any format; every factor here is instead a
// product of factors <= 1 that meet at the edges of 16-token blocks (prepare.cuh).
//
// What changed since v2.
//   prepare  one block a 64-token chunk: T' is put together from 16x16 inverses, and all of a chunk's operands are left as
//            one 66,048-byte image of the shared memory that `recur` wants: 1032 bytes a token and head for v2's 864.
//   recur    wgmma (m64n64k16, m64n128k16), A from registers, B in 128-byte swizzled panels that one bulk copy a chunk
//            brings; a thread of its own starts the copies, mbarriers hand the stages over (recur.cuh).
// Hopper alone (sm_90a) has these instructions.
//
// Exact at every gate, -30 and -inf included, as v2.
//
// Predicted for one H100, T = 8192, H = 96: 128 chunks in a row, 96 rows of them, 132 SMs at 1.755 GHz, 3.0 TB/s:
//   bytes a token and head  prepare 768 in + 1032 out, recur 1032 + 256 in + 256 out = 3344: 0.88 ms if neither stalls
//            (0.62 ms at the 4.25 TB/s that an H200 copies).
//   recur    tensor cores, 64 value channels: K~S 256 cycles, Q~S 256, T' 14 products of n = 16 at 16 or more, S 256, M 128:
//            1120 cycles a chunk and warpgroup, two warpgroups 2240; the chain of one warpgroup alone is not much longer,
//            since what it does not wait for fills its gaps: 1500 cycles, 128 times, 0.11 ms. So traffic is the wall with
//            many heads (0.40 ms of it here), the chain with few.
//
// Ledger rows: rung v4, direction forward.
#include "../common/host.h"
#include "prepare.cuh"
#include "recur.cuh"

namespace kda::v4 {

// Slots of the workspace: chunks of every sequence, and with cu_seqlens one spare a sequence (traits.cuh).
int64_t slots_of(const kda_args &a) {
  return a.cu_seqlens_bits ? a.tokens / C + a.sequences : a.batch * chunks_of(a.tokens);
}

int64_t workspace_of(const kda_args &a) { return slots_of(a) * a.heads_v * Chunk::BYTES; }

// SMs of the current device, or 0 if this machine code does not run there.
int multiprocessors() {
  int device, count, major, minor;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
    return 0;
  return major == 9 && minor == 0 ? count : 0;
}

const char *declines(const kda_args &a) {
  if (a.dim_k != K || a.dim_v != V) return "K and V must be 128";
  if (a.q.dtype != KDA_BF16) return "q, k and v must be bf16";
  if (a.o.dtype != KDA_BF16) return "o must be bf16";
  for (const kda_tensor *x : {&a.q, &a.k, &a.v, &a.o, &a.g})
    if (!rows_are_16_byte(*x, K)) return "q, k, v, g and o must have rows that start at multiples of 16 bytes";
  for (const kda_tensor *x : {&a.v, &a.o})  // a chunk of rows is stepped over in 32 bits: registers are what recur is short of
    if (x->stride_token < 0 || x->stride_token > INT32_MAX / (2 * C)) return "token strides of v and o must be at most 2^24 elements";
  if (a.state_indices) return "state_indices are for decode";
  if (a.tokens > INT32_MAX) return "T must be below 2^31";
  if (slots_of(a) * a.heads_v > INT32_MAX) return "more than 2^31 - 1 chunks";
  if (multiprocessors() == 0) return "it is machine code for compute capability 9.0 alone";
  return nullptr;
}

template <int GATE>
kda_status launch_prepare(const kda_args &a) {
  const auto kernel = a.g.dtype == KDA_F32 ? prepare<GATE, float2> : prepare<GATE, uint32_t>;
  return launch(kernel, slots_of(a) * a.heads_v, Prepare::THREADS, sizeof(PrepareShared), a.stream, "v4 prepare", a);
}

// `recur` starts while the last blocks of `prepare` still run, fetches its states and first rows of v, and waits for the
// images by itself (wait_for_kernel_before).
template <class R>
kda_status launch_recur(const kda_args &a) {
  const int64_t blocks = a.sequences * a.heads_v * R::SLABS;
  if (blocks == 0) return KDA_OK;
  if (blocks > INT32_MAX) return fail(KDA_UNSUPPORTED, "more than 2^31 - 1 thread blocks");
  cudaError_t code = cudaFuncSetAttribute(recur<R>, cudaFuncAttributeMaxDynamicSharedMemorySize, R::SHARED);
  if (code != cudaSuccess) return fail_cuda("v4 recur", code);
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(R::THREADS);
  config.dynamicSmemBytes = R::SHARED;
  config.stream = static_cast<cudaStream_t>(a.stream);
  config.attrs = &early;
  config.numAttrs = 1;
  code = cudaLaunchKernelEx(&config, recur<R>, a);
  return code == cudaSuccess ? KDA_OK : fail_cuda("v4 recur", code);
}

kda_status forward(const kda_args &a) {
  const kda_status status = a.gate == KDA_GATE_SIGMOID    ? launch_prepare<KDA_GATE_SIGMOID>(a)
                            : a.gate == KDA_GATE_SOFTPLUS ? launch_prepare<KDA_GATE_SOFTPLUS>(a)
                                                          : launch_prepare<KDA_GATE_LOG>(a);
  if (status != KDA_OK) return status;
  // Few (sequence, head) pairs leave SMs idle: then each warpgroup gets a block, and an SM, of its own.
  return a.sequences * a.heads_v * 2 <= multiprocessors() ? launch_recur<Recur<1>>(a) : launch_recur<Recur<2>>(a);
}

}  // namespace kda::v4

extern "C" {

const char *kda_v4_declines(const kda_args *args) {
  const char *why = kda::invalid(args);
  return why ? why : kda::v4::declines(*args);
}

int64_t kda_v4_workspace_bytes(const kda_args *args) {
  return kda_v4_declines(args) ? 0 : kda::v4::workspace_of(*args);
}

kda_status kda_v4_forward(const kda_args *args) {
  if (const char *why = kda::invalid(args)) return kda::fail(KDA_INVALID, why);
  if (const char *why = kda::v4::declines(*args)) return kda::fail(KDA_UNSUPPORTED, why);
  const int64_t need = kda::v4::workspace_of(*args);
  if (need > 0 && (!args->workspace || reinterpret_cast<uintptr_t>(args->workspace) % 256 || args->workspace_bytes < need))
    return kda::fail(KDA_WORKSPACE, "v4 needs kda_v4_workspace_bytes() of workspace, aligned to 256 bytes");
  return kda::v4::forward(*args);
}

const char *kda_v4_error(void) { return kda::error_text; }
}

// v3: v2 with the copy engine and warp roles.
//
// Idea. In v2 the warps that multiply also work out addresses, start every copy 16 bytes at a time, carry V through their
// registers, and meet at a block-wide barrier in each chunk, where all wait for the slowest. On Hopper a copy is one
// instruction of one thread: the copy engine (TMA) takes it from there, and an mbarrier counts its bytes. So copies move to
// warps of their own, and the warps that multiply do nothing else.
//
// What changed since v2. The same two kernels, the same arithmetic and the same image of a chunk between them.
//   prepare  q, k and g of a chunk arrive as three boxes of tensor maps (tensor_map.h); the three tiles leave in one bulk copy.
//   recur    one warp loads, one stores, the others multiply; full and empty barriers a stage take the place of the barrier
//            a chunk. V and O pass through shared memory, where ldmatrix and stmatrix transpose them on the way. The two
//            copying warps give back registers that the others take (setmaxnreg). And the three passes over the state are one.
//
// Predicted for one H100, T = 8192, H = 96, against v2's model (v2.cu): bytes as there, 0.79 ms if neither kernel stalls.
//   prepare  no longer waits for its own loads and stores one by one: 10 % off.
//   recur    54 mma.sync a warp and chunk for every 16 value channels, 6.5 cycles each, are 350 cycles. Between two passes stand
//            R and U, three products deep: 150. So 500 cycles a chunk for a warp with 16 value channels, where v2 takes 1500,
//            and 850 with 32: 0.25 ms, now under the 0.36 ms of traffic. Together 0.8 ms.
//
// Ledger rows: rung v3, direction forward.
#include "../common/host.h"
#include "prepare.cuh"
#include "recur.cuh"
#include "tensor_map.h"

namespace kda::v3 {

// Slots of the workspace: chunks of every sequence, and with cu_seqlens one spare a sequence (v2/traits.cuh).
int64_t slots_of(const kda_args &a) {
  return a.cu_seqlens_bits ? a.tokens / C + a.sequences : a.batch * v2::chunks_of(a.tokens);
}

int64_t workspace_of(const kda_args &a) { return slots_of(a) * a.heads_v * Chunk::BYTES; }

const char *declines(const kda_args &a) {
  if (a.dim_k != K || a.dim_v != V) return "K and V must be 128";
  if (a.q.dtype != KDA_BF16) return "q, k and v must be bf16";
  if (a.o.dtype != KDA_BF16) return "o must be bf16";
  for (const kda_tensor *x : {&a.q, &a.k, &a.v, &a.o, &a.g})
    if (!rows_are_16_byte(*x, K)) return "q, k, v, g and o must have rows that start at multiples of 16 bytes";
  if (a.state_indices) return "state_indices are for decode";
  if (a.tokens > INT32_MAX) return "T must be below 2^31";
  if (slots_of(a) * a.heads_v > INT32_MAX) return "more than 2^31 - 1 chunks";
  return nullptr;
}

template <int GATE>
kda_status launch_prepare(const kda_args &a) {
  if (a.batch == 0 || a.tokens == 0) return KDA_OK;  // no chunk, and no tensor map: the driver refuses empty tensors
  static thread_local TensorMapCache q, k, g;
  const CUtensorMap *map_q, *map_k, *map_g;
  kda_status status = q.encode(a.q, a.batch, a.tokens, a.heads_qk, K, K, C, CU_TENSOR_MAP_SWIZZLE_NONE, &map_q);
  if (status == KDA_OK) status = k.encode(a.k, a.batch, a.tokens, a.heads_qk, K, K, C, CU_TENSOR_MAP_SWIZZLE_NONE, &map_k);
  if (status == KDA_OK) status = g.encode(a.g, a.batch, a.tokens, a.heads_v, K, K, C, CU_TENSOR_MAP_SWIZZLE_NONE, &map_g);
  if (status != KDA_OK) return status;
  const auto kernel = a.g.dtype == KDA_F32 ? prepare<GATE, float2> : prepare<GATE, uint32_t>;
  return launch(kernel, slots_of(a) * a.heads_v, Prepare::THREADS, sizeof(PrepareShared), a.stream, "v3 prepare", a,
                Maps{*map_q, *map_k, *map_g});
}

template <class R>
kda_status launch_recur(const kda_args &a) {
  static thread_local TensorMapCache v, o;
  static const CUtensorMap nothing{};
  const CUtensorMap *map_v = &nothing, *map_o = &nothing;  // without tokens no copy is started, but states are still passed on
  if (a.batch > 0 && a.tokens > 0) {
    const CUtensorMapSwizzle swizzle = R::PANEL == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
    kda_status status = v.encode(a.v, a.batch, a.tokens, a.heads_v, V, R::PANEL, C, swizzle, &map_v);
    if (status == KDA_OK) status = o.encode(a.o, a.batch, a.tokens, a.heads_v, V, R::PANEL, C, swizzle, &map_o);
    if (status != KDA_OK) return status;
  }
  return launch(recur<R>, a.sequences * a.heads_v * R::SLABS, R::THREADS, sizeof(typename R::Shared), a.stream, "v3 recur", a, *map_v, *map_o);
}

kda_status forward(const kda_args &a) {
  const kda_status status = a.gate == KDA_GATE_SIGMOID    ? launch_prepare<KDA_GATE_SIGMOID>(a)
                            : a.gate == KDA_GATE_SOFTPLUS ? launch_prepare<KDA_GATE_SOFTPLUS>(a)
                                                          : launch_prepare<KDA_GATE_LOG>(a);
  if (status != KDA_OK) return status;
  int device, sms;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (code != cudaSuccess) return fail_cuda("v3", code);
  // Few (sequence, head) pairs leave SMs idle: split the value channels until the slabs fill them.
  const int64_t pairs = a.sequences * a.heads_v;
  if (pairs * 4 <= sms) return launch_recur<Recur<2, 1, 1, 8>>(a);
  if (pairs * 2 <= sms) return launch_recur<Recur<4, 1, 1, 8>>(a);
  return launch_recur<Recur<4, 2, 2, 6>>(a);
}

}  // namespace kda::v3

extern "C" {

const char *kda_v3_declines(const kda_args *args) {
  const char *why = kda::invalid(args);
  return why ? why : kda::v3::declines(*args);
}

int64_t kda_v3_workspace_bytes(const kda_args *args) {
  return kda_v3_declines(args) ? 0 : kda::v3::workspace_of(*args);
}

kda_status kda_v3_forward(const kda_args *args) {
  if (const char *why = kda::invalid(args)) return kda::fail(KDA_INVALID, why);
  if (const char *why = kda::v3::declines(*args)) return kda::fail(KDA_UNSUPPORTED, why);
  const int64_t need = kda::v3::workspace_of(*args);
  if (need > 0 && (!args->workspace || reinterpret_cast<uintptr_t>(args->workspace) % 256 || args->workspace_bytes < need))
    return kda::fail(KDA_WORKSPACE, "v3 needs kda_v3_workspace_bytes() of workspace, aligned to 256 bytes");
  return kda::v3::forward(*args);
}

const char *kda_v3_error(void) { return kda::error_text; }
}

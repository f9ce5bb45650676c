// Host side that every CUDA rung shares: what the header promises is checked once, here, and the
// text behind a status code is kept per thread.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>

#include "../include/kda_lab.h"

namespace kda {

inline thread_local char error_text[256] = "";

inline kda_status fail(kda_status status, const char *what) {
  snprintf(error_text, sizeof error_text, "%s", what);
  return status;
}

inline kda_status fail_cuda(const char *where, cudaError_t code) {
  snprintf(error_text, sizeof error_text, "%s: %s", where, cudaGetErrorString(code));
  return KDA_CUDA;
}

inline bool known_dtype(int32_t dtype) { return dtype == KDA_F32 || dtype == KDA_BF16; }

inline int64_t dtype_bytes(int32_t dtype) { return dtype == KDA_BF16 ? 2 : 4; }

// NULL, or what in the call contradicts kda_lab.h. A rung's own limits are its `declines`.
inline const char *invalid(const kda_args *a) {
  if (!a) return "args is NULL";
  if (a->abi_version != KDA_ABI_VERSION) return "abi_version differs from this library's";
  if (a->struct_bytes != sizeof(kda_args)) return "struct_bytes differs from this library's kda_args";
  if (a->batch < 0 || a->tokens < 0 || a->sequences < 0) return "batch, tokens, sequences must be >= 0";
  if (a->heads_qk < 1 || a->heads_v < 1) return "heads_qk and heads_v must be >= 1";
  if (a->heads_v % a->heads_qk) return "heads_v must be a multiple of heads_qk";
  if (a->dim_k < 1 || a->dim_v < 1) return "dim_k and dim_v must be >= 1";
  const kda_tensor *tensors[] = {&a->q, &a->k, &a->v, &a->o, &a->g, &a->beta};
  for (const kda_tensor *x : tensors) {
    if (!x->data && a->batch * a->tokens > 0) return "q, k, v, o, g and beta must not be NULL";
    if (!known_dtype(x->dtype)) return "a tensor's dtype is neither KDA_F32 nor KDA_BF16";
  }
  if (a->q.dtype != a->k.dtype || a->q.dtype != a->v.dtype) return "q, k and v must share one dtype";
  if (!known_dtype(a->state_dtype)) return "state_dtype is neither KDA_F32 nor KDA_BF16";
  if (a->gate < KDA_GATE_LOG || a->gate > KDA_GATE_SIGMOID) return "gate is not a kda_gate";
  if (a->beta_kind < KDA_BETA_PLAIN || a->beta_kind > KDA_BETA_2SIGMOID)
    return "beta_kind is not a kda_beta";
  if (a->cu_seqlens_bits != 0 && a->cu_seqlens_bits != 32 && a->cu_seqlens_bits != 64)
    return "cu_seqlens_bits must be 0, 32 or 64";
  if (a->cu_seqlens_bits) {
    if (!a->cu_seqlens) return "cu_seqlens is NULL though cu_seqlens_bits is not 0";
    if (a->batch != 1) return "batch must be 1 with cu_seqlens";
    if (a->sequences < 1) return "sequences must be >= 1 with cu_seqlens";
  } else if (a->sequences != a->batch) {
    return "sequences must equal batch without cu_seqlens";
  }
  if (a->state_indices && a->state_slots < 1) return "state_slots must be >= 1 with state_indices";
  return nullptr;
}

// 16-byte loads of whole rows are possible: base, strides and row length are all multiples of 16 bytes.
inline bool rows_are_16_byte(const kda_tensor &x, int64_t dim) {
  const int64_t size = dtype_bytes(x.dtype);
  const int64_t all = x.stride_batch | x.stride_token | x.stride_head | dim;
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && all * size % 16 == 0;
}

// Starts `kernel` on the call's stream. A kernel that needs more than 48 KB of shared memory says so.
template <typename... Params, typename... Args>
kda_status launch(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes,
                  void *stream, const char *name, Args... args) {
  if (blocks == 0) return KDA_OK;
  if (blocks > INT32_MAX) return fail(KDA_UNSUPPORTED, "more than 2^31 - 1 thread blocks");
  if (shared_bytes > 48 * 1024) {
    cudaError_t code = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_bytes));
    if (code != cudaSuccess) return fail_cuda(name, code);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaError_t code = cudaLaunchKernelEx(&config, kernel, args...);
  return code == cudaSuccess ? KDA_OK : fail_cuda(name, code);
}

}  // namespace kda

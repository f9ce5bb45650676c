// Tensor maps: what TMA must know of a tensor, encoded by the driver on the host.
#pragma once
#include <cuda.h>

#include <cstring>

#include "../common/host.h"

namespace kda::v3 {

// The driver's encoder, found through the runtime: nothing is linked against libcuda.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto found = [] {
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &status);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &status);
#endif
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(status == cudaDriverEntryPointSuccess ? entry : nullptr);
  }();
  return found;
}

// Encodes boxes of `channels` x `rows` tokens of one head of x [batch, tokens, heads, dim], as (channel, head, token, batch);
// what lies past `tokens` arrives as zeros. The last map is kept: a caller that runs the same buffers again pays a comparison.
class TensorMapCache {
 public:
  kda_status encode(const kda_tensor &x, int64_t batch, int64_t tokens, int heads, int dim, int channels, int rows,
                    CUtensorMapSwizzle swizzle, const CUtensorMap **map) {
    const int64_t size = dtype_bytes(x.dtype), packed = dim * size;
    // A stride over an extent of one is never taken, and may be anything; the encoder wants a multiple of 16 all the same.
    const Key key{x.data, x.dtype, channels,
                  {static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(tokens), static_cast<cuuint64_t>(batch)},
                  {static_cast<cuuint64_t>(heads > 1 ? x.stride_head * size : packed),
                   static_cast<cuuint64_t>(tokens > 1 ? x.stride_token * size : packed),
                   static_cast<cuuint64_t>(batch > 1 ? x.stride_batch * size : packed)}};
    *map = &map_;
    if (std::memcmp(&key, &key_, sizeof key) == 0) return KDA_OK;
    const auto encoder = tensor_map_encoder();
    if (!encoder) return fail(KDA_CUDA, "the driver has no cuTensorMapEncodeTiled");
    const cuuint32_t box[4] = {static_cast<cuuint32_t>(channels), 1, static_cast<cuuint32_t>(rows), 1}, steps[4] = {1, 1, 1, 1};
    const CUresult code = encoder(&map_, x.dtype == KDA_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, x.data,
                                  key.extents, key.strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code != CUDA_SUCCESS) {
      key_ = Key{};
      snprintf(error_text, sizeof error_text, "cuTensorMapEncodeTiled refused a tensor, CUresult %d", static_cast<int>(code));
      return KDA_CUDA;
    }
    key_ = key;
    return KDA_OK;
  }

 private:
  struct Key {  // no padding: compared byte for byte; rows and swizzle never differ between calls at one place
    void *data;
    int32_t dtype, channels;
    cuuint64_t extents[4], strides[3];
  };
  Key key_{};
  CUtensorMap map_{};
};

}  // namespace kda::v3

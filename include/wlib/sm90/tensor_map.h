// Host side: builds the TensorMap of a row-major matrix of bytes, 16-bit values or floats.
#pragma once

#include "wlib/sm90/copy.h"
#if WLIB_ON_DEVICE
#include <cuda_runtime.h>
#endif

namespace wlib::sm90 {

// Boxes arrive at a multiple of 128 bytes of shared memory, row after row. Swizzled, rows of a box
// have 32, 64 or 128 bytes, the address is a multiple of eight times as much, and chunks of 16
// bytes change places within a row, so that a column of them lies in all banks; wgmma reads rows of
// 128.
struct MatrixTiles {
  const void* base;  // 16-byte aligned
  uint64_t rows, columns;
  uint64_t row_stride_bytes;  // a multiple of 16
  uint32_t box_rows, box_columns;
  uint32_t element_bytes;  // 1, 2 or 4
  bool swizzle = true;
};

#if WLIB_ON_DEVICE

namespace detail {
// Looked up at run time, so that nothing links libcuda.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                             12000, cudaEnableDefault, &status);
  if (error != cudaSuccess || status != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}
inline CUtensorMapSwizzle swizzle_mode(uint32_t bytes) {
  return bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
         : bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
         : bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                       : CU_TENSOR_MAP_SWIZZLE_NONE;
}
}  // namespace detail

// False if the driver is too old or refuses the map.
inline bool make_tensor_map(TensorMap* map, const MatrixTiles& t) {
  static const auto encode = detail::tensor_map_encoder();
  if (!encode) return false;
  const cuuint64_t extent[2] = {t.columns, t.rows}, stride[1] = {t.row_stride_bytes};
  const cuuint32_t box[2] = {t.box_columns, t.box_rows}, step[2] = {1, 1};
  const auto type = t.element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                    : t.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                           : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  return encode(map, type, 2, const_cast<void*>(t.base), extent, stride, box, step,
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                detail::swizzle_mode(t.swizzle ? t.box_columns * t.element_bytes : 0),
                CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

#else

inline bool make_tensor_map(TensorMap* map, const MatrixTiles& t) {
  *map = {static_cast<const uint8_t*>(t.base),
          t.columns * t.element_bytes,
          t.rows,
          t.row_stride_bytes,
          t.box_columns * t.element_bytes,
          t.box_rows,
          t.element_bytes,
          t.swizzle};
  return true;
}

#endif

}  // namespace wlib::sm90

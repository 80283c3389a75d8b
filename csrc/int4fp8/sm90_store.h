// The end of a GEMM: bias and the one rounding to the output type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "wlib/params/int4fp8.h"
#include "wlib/sm90/platform.h"

namespace wlib::int4fp8 {

template <class T, class Pair>
WLIB_DEVICE void store_values(T* y, bool both, bool aligned, T first, T second) {
  if (both && aligned) {
    *reinterpret_cast<Pair*>(y) = Pair{first, second};
  } else {
    y[0] = first;
    if (both) y[1] = second;
  }
}

WLIB_DEVICE float load_bias(const void* bias, FloatType type, int n) {
  switch (type) {
    case FloatType::kFloat32: return static_cast<const float*>(bias)[n];
    case FloatType::kBFloat16: return __bfloat162float(static_cast<const __nv_bfloat16*>(bias)[n]);
    default: return __half2float(static_cast<const __half*>(bias)[n]);
  }
}

WLIB_DEVICE float2 load_bias_pair(const void* bias, FloatType type, int n, bool both) {
  return {load_bias(bias, type, n), both ? load_bias(bias, type, n + 1) : 0.0f};
}

// y[m, n] and, if it exists, y[m, n + 1]; n is even. Params has y, n and out_type.
template <class Params>
WLIB_DEVICE void store_pair(const Params& p, int m, int n, float y0, float y1) {
  const bool both = n + 1 < p.n, aligned = p.n % 2 == 0;  // y itself is aligned to 16 bytes
  const int64_t at = int64_t(m) * p.n + n;
  switch (p.out_type) {
    case FloatType::kFloat32:
      return store_values<float, float2>(static_cast<float*>(p.y) + at, both, aligned, y0, y1);
    case FloatType::kBFloat16:
      return store_values<__nv_bfloat16, __nv_bfloat162>(static_cast<__nv_bfloat16*>(p.y) + at,
                                                         both, aligned, __float2bfloat16_rn(y0),
                                                         __float2bfloat16_rn(y1));
    default:
      return store_values<__half, __half2>(static_cast<__half*>(p.y) + at, both, aligned,
                                           __float2half_rn(y0), __float2half_rn(y1));
  }
}

}  // namespace wlib::int4fp8

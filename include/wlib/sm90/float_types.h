// What kernels are instantiated for, float, __nv_bfloat16 and __half, from and to float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

WLIB_DEVICE float as_float(float x) { return x; }
WLIB_DEVICE float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
WLIB_DEVICE float as_float(__half x) { return __half2float(x); }

template <class T>
WLIB_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else
    return x;
}

}  // namespace wlib::sm90

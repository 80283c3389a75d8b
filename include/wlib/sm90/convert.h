// FP8 conversions by the GPU's own instructions; the host takes their definition, numerics/e4m3.h.
#pragma once

#include <cuda_fp16.h>

#include "wlib/numerics/e4m3.h"
#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

// The values of two neighbouring codes, the lower byte's first. Exact.
WLIB_DEVICE float2 e4m3x2_to_float2(uint16_t codes) {
#if WLIB_ON_DEVICE
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
  return __half22float2(reinterpret_cast<const __half2&>(halves));
#else
  return {e4m3_to_float(uint8_t(codes)), e4m3_to_float(uint8_t(codes >> 8))};
#endif
}

}  // namespace wlib::sm90

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

// Four codes, a's in the lowest byte: nearest, ties to even, saturating; NaN stays NaN.
WLIB_DEVICE uint32_t float_to_e4m3x4(float a, float b, float c, float d) {
#if WLIB_ON_DEVICE
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
  return low | uint32_t(high) << 16;
#else
  return float_to_e4m3(a) | float_to_e4m3(b) << 8 | float_to_e4m3(c) << 16 |
         uint32_t(float_to_e4m3(d)) << 24;
#endif
}

}  // namespace wlib::sm90

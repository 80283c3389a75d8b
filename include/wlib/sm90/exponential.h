// Exponential and hyperbolic tangent for softmax, on the unit that has one instruction for 2^x.
#pragma once

#include <cmath>

#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

// 2^x within 2 units in the last place; 0 below -126. NaN stays NaN.
WLIB_DEVICE float exp2_fast(float x) {
#if WLIB_ON_DEVICE
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
#else
  return x < -126.0f ? 0.0f : std::exp2(x);
#endif
}

// Within 2^-21 of tanh(x), absolutely.
WLIB_DEVICE float tanh_fast(float x) {
  constexpr float kTwiceLog2E = 2.88539008f;
  const float divisor = 1.0f + exp2_fast(kTwiceLog2E * x);
#if WLIB_ON_DEVICE
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(divisor));
#else
  const float inverse = 1.0f / divisor;
#endif
  return 1.0f - 2.0f * inverse;
}

}  // namespace wlib::sm90

// silu(x) = x / (1 + exp(-x)) in FP32, by operations that round alike on every processor.
#pragma once

#include <bit>
#include <cmath>

#include "wlib/platform.h"

namespace wlib {

// exp(x) for x in [-80, 80], to a relative 2^-22: 2^n exp(r) with |r| <= ln(2) / 2, a polynomial.
WLIB_HOST_DEVICE float exp_between_80(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the nearest integer
  const float shifted = fmaf(x, 0x1.715476p+0f, kShift), n = shifted - kShift;
  // ln(2) in two parts, of which n times the first is exact.
  const float r = fmaf(n, -0x1.0bfbe8p-15f, fmaf(n, -0x1.62ep-1f, x));
  float e = 0x1.0fe57ap-7f;
  e = fmaf(e, r, 0x1.575f72p-5f);
  e = fmaf(e, r, 0x1.555a1ap-3f);
  e = fmaf(e, r, 0x1.fffd18p-2f);
  e = fmaf(e, r, 0x1.fffff6p-1f);
  e = fmaf(e, r, 0x1.000002p+0f);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(e) +
                              (std::bit_cast<uint32_t>(shifted) << 23));
}

// x / d from an approximate 1 / d, rounded as the division rounds if neither x, d nor the quotient
// is huge or tiny: the operations with which CUDA divides such numbers.
WLIB_HOST_DEVICE float divide_by_reciprocal(float x, float d, float approximate) {
  const float reciprocal = fmaf(approximate, fmaf(-d, approximate, 1.0f), approximate);
  const float first = x * reciprocal;
  const float faithful = fmaf(reciprocal, fmaf(-d, first, x), first);
  return fmaf(reciprocal, fmaf(-d, faithful, x), faithful);
}

// silu(x), given divide(x, d) for d from 1 to 2^116. From 20 on, 1 + exp(-x) rounds to 1; below -80
// the result is less than 2^-109, and is -0.
template <class Divide>
WLIB_HOST_DEVICE float silu(float x, Divide divide) {
  const float between = divide(x, 1.0f + exp_between_80(-x));
  const float low = x < -80.0f ? -0.0f : between;
  return x > 20.0f ? x : low;
}

}  // namespace wlib

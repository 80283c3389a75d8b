// Many values divided by one number, each rounded as the division x / divisor rounds, for the price
// of six multiplications and FMAs.
#pragma once

#include <bit>
#include <cmath>

#include "wlib/platform.h"

namespace wlib {

// For a divisor >= 0 that is not 0, and |x| below 2^10 times it. Inf and NaN divide as they should:
// x / Inf = 0, Inf / Inf = NaN.
//
// The first quotient, x * RN(1 / d), is off by less than 1.5 units in the last place; one Newton
// step makes it one of the two neighbours of x / d, and by Markstein's theorem a second step, whose
// remainder is exact, rounds it correctly. Both x and d are first scaled by the power of two that
// puts d into [1, 2), so that no remainder underflows unless the quotient is below 2^-60.
class Quotient {
 public:
  WLIB_HOST_DEVICE explicit Quotient(float divisor) {
    const uint32_t exponent = std::bit_cast<uint32_t>(divisor) >> 23;
    const bool finite = exponent < 255;
    power_ = finite ? std::bit_cast<float>((254 - exponent) << 23) : 1.0f;
    divisor_ = divisor * power_;
    reciprocal_ = 1.0f / divisor_;
    if (reciprocal_ == 0) divisor_ = 0;  // Inf: a remainder of 0 * Inf would be NaN
  }
  WLIB_HOST_DEVICE float operator()(float x) const {
    const float scaled = x * power_;
    const float first = scaled * reciprocal_;
    const float faithful = fmaf(-fmaf(divisor_, first, -scaled), reciprocal_, first);
    return fmaf(-fmaf(divisor_, faithful, -scaled), reciprocal_, faithful);
  }

 private:
  float power_, divisor_, reciprocal_;
};

}  // namespace wlib

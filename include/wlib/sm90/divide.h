// Division without the branch to the slow path, which would cost registers and time.
#pragma once

#include "wlib/numerics/silu.h"
#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

// x / d, correctly rounded, for finite x and d from 1 to 2^116.
WLIB_DEVICE float divide(float x, float d) {
#if WLIB_ON_DEVICE
  float approximate;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(approximate) : "f"(d));
  return divide_by_reciprocal(x, d, approximate);
#else
  return x / d;
#endif
}

}  // namespace wlib::sm90

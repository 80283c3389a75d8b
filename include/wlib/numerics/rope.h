// The rotary position embedding's rotation, rounded in the same places on every device.
#pragma once

#include <cmath>

#include "wlib/platform.h"

namespace wlib {

// x * cos + signed_partner * sin: `signed_partner` is the channel half a head away, negated for the
// first half. One product is rounded, the other is part of the FMA, so that no compiler can fuse
// them another way.
WLIB_HOST_DEVICE float rotate(float x, float signed_partner, float cos, float sin) {
  return fmaf(signed_partner, sin, x * cos);
}

}  // namespace wlib

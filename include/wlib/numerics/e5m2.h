// E5M2 (float8_e5m2): 1 sign, 5 exponent bits with bias 15, 2 fraction bits: the upper byte of an
// FP16.
#pragma once

#include <bit>

#include "wlib/platform.h"

namespace wlib {

// Exact.
WLIB_HOST_DEVICE constexpr float e5m2_to_float(uint8_t code) {
  const uint32_t sign = uint32_t(code & 0x80) << 24, exponent = code >> 2 & 31, fraction = code & 3;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 21);
  if (exponent == 0) {  // fraction * 2^-16
    const float magnitude = float(fraction) * 0.0000152587890625f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 21);
}

}  // namespace wlib

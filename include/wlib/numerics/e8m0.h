// E8M0, the scale of an MX block: an exponent with bias 127 and nothing else; 255 is NaN.
#pragma once

#include <bit>

#include "wlib/platform.h"

namespace wlib {

constexpr uint32_t kE8M0NaN = 255;
// Largest scale s with 6 * s finite in FP32.
constexpr int kE8M0Largest = 252;

// Exact; 2^-127 is subnormal in FP32.
WLIB_HOST_DEVICE constexpr float e8m0_to_float(uint32_t code) {
  if (code == kE8M0NaN) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>(code == 0 ? 0x00400000u : code << 23);
}

// 1 / scale, for codes up to kE8M0Largest.
WLIB_HOST_DEVICE constexpr float e8m0_reciprocal(uint32_t code) {
  return std::bit_cast<float>((254 - code) << 23);
}

}  // namespace wlib

// E4M3 (float8_e4m3fn): 1 sign, 4 exponent bits with bias 7, 3 fraction bits; no infinities, NaN =
// 0x7f | sign.
#pragma once

#include <bit>

#include "wlib/platform.h"

namespace wlib {

constexpr float kE4M3Max = 448.0f;

// Exact. Also what the simulator's tensor core uses, so kernels and specification cannot drift
// apart.
WLIB_HOST_DEVICE constexpr float e4m3_to_float(uint8_t code) {
  const uint32_t sign = uint32_t(code & 0x80) << 24, exponent = code >> 3 & 15, fraction = code & 7;
  if (exponent == 15 && fraction == 7) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0) {  // fraction * 2^-9
    const float magnitude = float(fraction) * 0.001953125f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 120) << 23 | fraction << 20);
}

// Rounds to nearest, ties to even; beyond the largest finite value saturates; NaN stays NaN.
// Without branches, so that loops over it become vector code.
WLIB_HOST_DEVICE constexpr uint8_t float_to_e4m3(float value) {
  constexpr uint32_t kLargest = 0x43e00000u;      // 448
  constexpr uint32_t kLeastNormal = 0x3c800000u;  // 2^-6
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  const uint32_t clamped = magnitude < kLargest ? magnitude : kLargest;
  const uint32_t normal = ((clamped + 0x7ffffu + (clamped >> 20 & 1)) >> 20) - (120u << 3);
  // Adding 2^14 aligns the last bit kept, 2^-9, with the float's.
  const float aligned = std::bit_cast<float>(clamped) + 16384.0f;
  const uint32_t subnormal = std::bit_cast<uint32_t>(aligned) - 0x46800000u;
  const uint32_t finite = clamped < kLeastNormal ? subnormal : normal;
  return uint8_t((bits >> 24 & 0x80) | (magnitude > 0x7f800000u ? 0x7f : finite));
}

}  // namespace wlib

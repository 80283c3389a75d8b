// E2M1, the 4-bit float: 1 sign, 2 exponent bits with bias 1, 1 fraction bit; no NaN, no
// infinities. Magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6.
#pragma once

#include <bit>

#include "wlib/platform.h"

namespace wlib {

constexpr float kE2M1Max = 6.0f;

WLIB_HOST_DEVICE constexpr float e2m1_to_float(uint32_t code) {
  const uint32_t magnitude = code & 7, exponent = magnitude >> 1, fraction = magnitude & 1;
  const uint32_t normal = (exponent + 126) << 23 | fraction << 22;
  const uint32_t bits = magnitude < 2 ? fraction * 0x3f000000u : normal;  // 0 or 0.5
  return std::bit_cast<float>(bits | (code & 8) << 28);
}

// Rounds to nearest, ties to even; beyond 6 saturates, NaN included; keeps the sign, of zeros too.
// Below 2 the steps are of 0.5: adding 2^22 aligns the last bit kept with the float's. Scaling into
// the subnormals of FP32 would do the same, but rounds there once before.
WLIB_HOST_DEVICE constexpr uint32_t float_to_e2m1(float value) {
  constexpr uint32_t kTwo = 0x40000000u, kSix = 0x40c00000u;
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  const uint32_t clamped = magnitude < kSix ? magnitude : kSix;
  const uint32_t large = ((clamped + 0x1fffffu + (clamped >> 22 & 1)) >> 22) - (126u << 1);
  const float aligned = std::bit_cast<float>(clamped) + 4194304.0f;
  const uint32_t small = std::bit_cast<uint32_t>(aligned) & 7;
  return (clamped < kTwo ? small : large) | (bits >> 28 & 8);
}

// Rounds up with the probability of the distance to the value below; `random` holds 22 random bits.
// Beyond 6 saturates.
WLIB_HOST_DEVICE constexpr uint32_t float_to_e2m1_stochastic(float value, uint32_t random) {
  constexpr uint32_t kTwo = 0x40000000u, kSix = 0x40c00000u;
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  const uint32_t clamped = magnitude < kSix ? magnitude : kSix;
  const uint32_t large = ((clamped + random) >> 22) - (126u << 1);
  // In units of 2^-23: below 2 that is at most 24 bits, and what lies below is cut off.
  const float fixed = std::bit_cast<float>(clamped < kTwo ? clamped : 0u) * 8388608.0f;
  const uint32_t small = (uint32_t(fixed) + random) >> 22;
  const uint32_t code = clamped < kTwo ? small : large;
  return (code < 7 ? code : 7) | (bits >> 28 & 8);
}

}  // namespace wlib

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
// The steps are half the power of two below the value, 0.5 at least: adding 2^22 times that power
// aligns the last bit kept with the float's. (Scaling into the subnormals of FP32 would do the
// same, but rounds there once before.)
WLIB_HOST_DEVICE constexpr uint32_t float_to_e2m1(float value) {
  constexpr uint32_t kOne = 0x3f800000u, kSix = 0x40c00000u;
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  const uint32_t clamped = magnitude < kSix ? magnitude : kSix;
  const uint32_t power = (clamped > kOne ? clamped : kOne) & 0x7f800000u;
  const float unit = std::bit_cast<float>(power + (22u << 23) + 6);  // 6 units more, see below
  const uint32_t steps = std::bit_cast<uint32_t>(std::bit_cast<float>(clamped) + unit);
  // Codes count steps, plus two for each binade above 1; the biased exponent and its 22 are 149,
  // twice that and the 6 are a multiple of 8.
  return ((steps + (steps >> 22)) & 7) | (bits >> 28 & 8);
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

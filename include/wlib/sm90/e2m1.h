// Rounding to E2M1 as a GPU does it in the fewest instructions: the codes of float_to_e2m1
// (numerics/e2m1.h), which is their definition.
#pragma once

#include <cmath>

#include "wlib/numerics/e2m1.h"
#include "wlib/sm90/bits.h"

namespace wlib::sm90 {

// The code's magnitude in bits 0 to 2; what is above them is of no use. As in float_to_e2m1, but
// the addition of 2^22 + 3 times the power of two is one instruction, and exact up to its rounding.
WLIB_DEVICE uint32_t e2m1_magnitude(float value) {
  const float clamped = fminf(fabsf(value), kE2M1Max);
  const uint32_t power = std::bit_cast<uint32_t>(fmaxf(clamped, 1.0f)) & 0x7f800000u;
  const float sum = fmaf(std::bit_cast<float>(power), 4194307.0f, clamped);
  const uint32_t steps = std::bit_cast<uint32_t>(sum);
  return steps + (steps >> 22);
}

// The codes of x[0], x[2], x[4] and x[6], in the lower half of a byte each.
WLIB_DEVICE uint32_t every_second_e2m1(const float* x) {
  const uint32_t first = permute_bytes(e2m1_magnitude(x[0]), e2m1_magnitude(x[2]), 0x40);
  const uint32_t second = permute_bytes(e2m1_magnitude(x[4]), e2m1_magnitude(x[6]), 0x40);
  const uint32_t magnitudes = permute_bytes(first, second, 0x5410);
  const auto bits = [&](int i) { return std::bit_cast<uint32_t>(x[i]); };
  // Of the highest bytes the sign bit, eight times.
  const uint32_t low = permute_bytes(bits(0), bits(2), 0xfb);
  const uint32_t high = permute_bytes(bits(4), bits(6), 0xfb);
  const uint32_t signs = permute_bytes(low, high, 0x5410);
  return and_or(signs, 0x08080808u, magnitudes & 0x07070707u);
}

// Eight codes, the first in the lowest bits.
WLIB_DEVICE uint32_t eight_e2m1(const float* x) {
  return every_second_e2m1(x) | every_second_e2m1(x + 1) << 4;
}

}  // namespace wlib::sm90

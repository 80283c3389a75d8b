// Rounding to E2M1 in few instructions, most of them not the ALU's: the codes of float_to_e2m1,
// eight in a word.
#pragma once

#include <cmath>

#include "wlib/numerics/e2m1.h"
#include "wlib/sm90/bits.h"
#include "wlib/sm90/convert.h"

namespace wlib::fp4 {

// Values are rounded times 2^-14. There E5M2 has its smallest normal number and E2M1, as a part of
// it, the same subnormal ones: the byte of a rounded value is sign, four zeros, code, zero.
constexpr float kEncodeUnit = 1.0f / 16384;
// Below 7, the middle of 6 and 8, a value needs no clamp.
constexpr float kEncodeLimit = kE2M1Max * kEncodeUnit;

// The nearest E2M1, of any sign: |scaled| < 7 units.
WLIB_DEVICE float round_to_e2m1(float scaled) {
  // The last bit of 2^22 times the power of two below a value is worth half that power; the half
  // more keeps the sum in its binade for either sign.
  constexpr float kShift = 1.5f * 4194304;
  const float power = std::bit_cast<float>(
      std::bit_cast<uint32_t>(fmaxf(fabsf(scaled), kEncodeUnit)) & 0x7f800000u);
  return fmaf(power, kShift, -fmaf(power, kShift, scaled));
}

// Eight codes of values times kEncodeUnit, the first in the lowest bits; of NaN any code.
template <bool kClamp>
WLIB_DEVICE uint32_t encode_eight(const float (&scaled)[8]) {
  float x[8], rounded[8];
  WLIB_UNROLL
  for (int i = 0; i < 8; ++i) {
    x[i] = kClamp ? fmaxf(fminf(scaled[i], kEncodeLimit), -kEncodeLimit) : scaled[i];
    rounded[i] = round_to_e2m1(x[i]);
  }
  // Codes of even and of odd elements become the lower and the upper halves of bytes. Signs are
  // taken from the values: zeros keep them.
  const auto bytes = [](const float* from) {
    return sm90::float_to_e5m2x4(from[0], from[2], from[4], from[6]);
  };
  constexpr uint32_t kLower = 0x0f0f0f0fu, kMagnitudes = 0x77777777u;
  const uint32_t magnitudes =
      sm90::select_bits(kLower, bytes(rounded) >> 1, bytes(rounded + 1) << 3);
  const uint32_t signs = sm90::select_bits(kLower, bytes(x) >> 4, bytes(x + 1));
  return sm90::select_bits(kMagnitudes, magnitudes, signs);
}

}  // namespace wlib::fp4

// Rounding to E2M1 in the fewest instructions: the codes of float_to_e2m1, eight in a word.
#pragma once

#include <cmath>

#include "wlib/numerics/e2m1.h"
#include "wlib/sm90/bits.h"

namespace wlib::fp4 {

// The code without its sign in the lowest three bits; the others hold anything. As in
// float_to_e2m1, but unit and sum are one FFMA: the product, 2^22 powers and their 6 steps, is
// exact.
WLIB_DEVICE uint32_t e2m1_magnitude(float value) {
  const float clamped = fminf(fabsf(value), kE2M1Max);  // 6 for a (quiet) NaN
  const float power =
      std::bit_cast<float>(std::bit_cast<uint32_t>(fmaxf(clamped, 1.0f)) & 0x7f800000u);
  const uint32_t steps = std::bit_cast<uint32_t>(fmaf(power, 4194304.0f + 3.0f, clamped));
  return steps + (steps >> 22);
}

// Eight codes, the first in the lowest bits. PRMT gathers bytes, those of even elements apart from
// those of odd ones, which then take the upper halves of the same bytes; asked for a sign, it
// fills a byte with it.
WLIB_DEVICE uint32_t encode_eight(const float (&value)[8]) {
  const auto gather = [](const uint32_t* from, uint32_t pair) {
    return sm90::permute_bytes(sm90::permute_bytes(from[0], from[2], pair),
                               sm90::permute_bytes(from[4], from[6], pair), 0x5410u);
  };
  uint32_t magnitude[8], bits[8];
  WLIB_UNROLL
  for (int i = 0; i < 8; ++i) {
    magnitude[i] = e2m1_magnitude(value[i]);
    bits[i] = std::bit_cast<uint32_t>(value[i]);
  }
  constexpr uint32_t kLowest = 0x40u, kSign = 0xfbu;  // bytes of each register of a pair
  constexpr uint32_t kEven = 0x0f0f0f0fu, kMagnitudes = 0x77777777u;
  const uint32_t magnitudes =
      sm90::select_bits(kEven, gather(magnitude, kLowest), gather(magnitude + 1, kLowest) << 4);
  const uint32_t signs = sm90::select_bits(kEven, gather(bits, kSign), gather(bits + 1, kSign));
  return sm90::select_bits(kMagnitudes, magnitudes, signs);
}

}  // namespace wlib::fp4

// Codes in registers, eight in a word, as what tensor cores multiply.
#pragma once

#include "wlib/numerics/fp4_carrier.h"
#include "wlib/sm90/bits.h"
#include "wlib/sm90/convert.h"

namespace wlib::fp4 {

// BF16 times 2^-126, exactly: pair j has codes j and j + 4. The bits of a code, at the upper end of
// BF16's fraction and the lower one of its exponent, are just that; the sign is brought to its
// place by the same product.
WLIB_DEVICE void expand_pairs(uint32_t codes, uint32_t (&pairs)[4]) {
  WLIB_UNROLL
  for (int j = 0; j < 4; ++j) {
    const uint32_t placed = j % 2 ? (codes >> j / 2 * 8 & 0x00f000f0u) * 0x104u
                                  : (codes >> j / 2 * 8 & 0x000f000fu) * 0x1040u;
    pairs[j] = placed & 0x81c081c0u;
  }
}
constexpr uint32_t kPairUnit = 0x7e807e80u;  // 2^126, twice
// The bits of a number that BF16 holds, twice.
WLIB_DEVICE uint32_t pair_of(float number) {
  const uint32_t bits = std::bit_cast<uint32_t>(number);
  return sm90::permute_bytes(bits, bits, 0x3232u);
}

// The same of an E8M0 scale, but of NaN Inf, which makes sums that are not finite as well.
WLIB_DEVICE uint32_t e8m0_pair(uint32_t scale) {
  return scale == 0 ? 0x00400040u : scale * 0x00800080u;
}

// Bytes of a carrier: codes 0 to 3, then 4 to 7.
WLIB_DEVICE void expand_carrier(uint32_t codes, CarrierTable table, uint32_t (&bytes)[2]) {
  const uint32_t magnitudes = codes & 0x77777777u;
  // The sign of an odd code is the highest bit of a byte, that of an even one four bits further.
  const uint32_t even = codes << 4;
  const uint32_t signs[] = {sm90::permute_bytes(even, codes, 0x5140),
                            sm90::permute_bytes(even, codes, 0x7362)};
  WLIB_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t four = sm90::permute_bytes(table.low, table.high, magnitudes >> i * 16);
    bytes[i] = sm90::and_or(signs[i], 0x80808080u, four);
  }
}

}  // namespace wlib::fp4

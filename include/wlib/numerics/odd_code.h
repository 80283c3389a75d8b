// Odd-coded INT4: q in -8..7 travels as the sign and three magnitude bits of 2q+1, an odd number in
// -15..15.
//
// The E4M3 bit patterns 0..15 mean k * 2^-9, so 2q+1 needs no conversion, only bit placement:
//   E4M3 byte = sign | 000 | m2 m1 m0 1      with |2q+1| = 2m+1, value (2q+1) * 2^-9
// A dot product with these bytes is 2^-9 * sum((2q+1) x) = 2^-8 * sum(q x) + 2^-9 * sum(x); the
// last term is taken off again by a second product with the constant -1 * 2^-9 (see
// csrc/int4fp8/sm90_decode.h).
#pragma once

#include "wlib/platform.h"

namespace wlib {

// Two codes share a byte: a = the byte of the first four weights, b = of the second four.
//   bit 7: sign a | 6..4: magnitude b | 3..1: magnitude a | 0: sign b
WLIB_HOST_DEVICE constexpr uint8_t odd_encode_pair(int qa, int qb) {
  const int magnitude_a = qa < 0 ? -qa - 1 : qa,
            magnitude_b = qb < 0 ? -qb - 1 : qb;  // (|2q+1| - 1) / 2
  return uint8_t((qa < 0) << 7 | magnitude_b << 4 | magnitude_a << 1 | (qb < 0));
}

// 2q + 1 of each of the two codes.
WLIB_HOST_DEVICE constexpr int odd_decode_a(uint8_t pair) {
  const int magnitude = (pair & 0x0e) | 1;
  return pair & 0x80 ? -magnitude : magnitude;
}
WLIB_HOST_DEVICE constexpr int odd_decode_b(uint8_t pair) {
  const int magnitude = (pair >> 3 & 0x0e) | 1;
  return pair & 0x01 ? -magnitude : magnitude;
}

// E4M3 bytes of +1 and -1 in the same unit of 2^-9, four to a register.
constexpr uint32_t kOddPlusOne = 0x01010101u;
constexpr uint32_t kOddMinusOne = 0x81818181u;
// Dot products come out in units of 2^-8 * q.
constexpr float kOddCodeScale = 256.0f;

}  // namespace wlib

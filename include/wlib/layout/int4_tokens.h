// A cache of INT4 keys and values with a row per token and head, and a zero point per row: what
// vLLM's `int4_per_token_head` writes (docs/design/vllm_cache.md says what was read where).
//
// A row has head_dim / 2 bytes: channel 2i is the low nibble of byte i, channel 2i + 1 the high
// one, both 0..15. The low four bits of the row's float32 scale are its zero point:
//   x[channel] = (code - zero) * scale,  scale = the float with those four bits cleared
// code - zero is an integer of -15..15: a sign and four bits of magnitude, which an E4M3 byte holds
// exactly, again in units of 2^-9.
#pragma once

#include <bit>

#include "wlib/platform.h"

namespace wlib::int4tokens {

constexpr uint32_t kZeroBits = 15;
constexpr uint32_t kNibbles = 0x0f0f0f0fu, kSigns = 0x80808080u;
constexpr uint32_t kEveryByte = 0x01010101u;

WLIB_HOST_DEVICE constexpr int load_code(const uint8_t* row, int channel) {
  return row[channel / 2] >> channel % 2 * 4 & 15;
}
WLIB_HOST_DEVICE constexpr uint32_t zero_point(float scale) {
  return std::bit_cast<uint32_t>(scale) & kZeroBits;
}
WLIB_HOST_DEVICE constexpr float scale_of_row(float scale) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scale) & ~kZeroBits);
}

// Four codes and four zero points, a byte each -> the E4M3 bytes of their differences. A byte of
// 0x80 + code - zero neither borrows nor carries; its top bit tells the sign.
WLIB_HOST_DEVICE constexpr uint32_t subtract_zeros(uint32_t codes, uint32_t zeros) {
  const uint32_t shifted = codes + (kSigns - zeros), negative = ~shifted & kSigns,
                 ones = negative >> 7;
  const uint32_t flip = negative - ones;  // 0x7f where negative
  return ((shifted ^ flip) & ~kSigns) + ones + negative;
}

}  // namespace wlib::int4tokens

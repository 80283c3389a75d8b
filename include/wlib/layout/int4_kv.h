// The INT4 cache of keys and values, layout version 1, shared by writers, CPU and GPU readers.
//
// The 64 tokens of a block and one KV head are one contiguous run of bytes, so that any page table
// works with plain bulk copies: head_dim * 32 B of keys, as much of values. A code is a sign and a
// magnitude, -7..7, and stands in units of 2^-9 once it is put into an E4M3 byte.
//
// Both runs hold a matrix of `rows` x `columns`: keys [64 tokens][head_dim], values transposed
// [head_dim][64 slots], because an FP8 wgmma wants the dimension it sums over contiguous. A unit of
// 16 bytes has 32 neighbouring columns of a row; units of the same columns follow one another row
// after row: [columns / 32][rows][16]. Neighbouring threads then take neighbouring rows, without
// bank conflicts on loading and, in the 128-byte swizzle, on storing the expanded bytes.
//
// Byte j of a unit joins column j (first) and column 16 + j (second). In each 32-bit word
//   bits 2..0: first's magnitude | 7: its sign | 6..4: second's magnitude | 3: sign of the second
//   of the byte before, cyclically
// so that  w & 0x87878787  and  rotate_right(w, 4) & 0x87878787  are eight E4M3 codes.
#pragma once

#include "wlib/platform.h"

namespace wlib::int4kv {

constexpr int kLayoutVersion = 1;
constexpr int kBlockTokens = 64;
constexpr int kUnitColumns = 32;
constexpr int kLargestCode = 7;
constexpr uint32_t kCodeMask = 0x87878787u;

constexpr int64_t block_bytes(int head_dim) { return int64_t(head_dim) * kBlockTokens / 2; }

// The tensor core's probabilities of 16 neighbouring keys come in another order than its FP8
// operand takes them: slot 4q + 2b + a of the values belongs to key 8b + 2q + a.
WLIB_HOST_DEVICE constexpr int value_slot(int token) {
  return token / 16 * 16 + token % 8 / 2 * 4 + token / 8 % 2 * 2 + token % 2;
}

// Where a code is: magnitude in three bits of one byte, sign in one bit of another or the same.
struct Position {
  int64_t magnitude_byte, sign_byte;
  int magnitude_shift, sign_shift;
};
WLIB_HOST_DEVICE constexpr Position position(int row, int column, int rows) {
  const int64_t unit = (int64_t(column / kUnitColumns) * rows + row) * 16;
  const int byte = column % 16;
  if (column / 16 % 2 == 0) return {unit + byte, unit + byte, 0, 7};
  return {unit + byte, unit + byte / 4 * 4 + (byte + 1) % 4, 4, 3};
}
WLIB_HOST_DEVICE constexpr Position key_position(int token, int channel) {
  return position(token, channel, kBlockTokens);
}
WLIB_HOST_DEVICE constexpr Position value_position(int token, int channel, int head_dim) {
  return position(channel, value_slot(token), head_dim);
}

WLIB_HOST_DEVICE constexpr void store_code(uint8_t* run, Position at, int code) {
  const int magnitude = code < 0 ? -code : code;
  run[at.magnitude_byte] = uint8_t((run[at.magnitude_byte] & ~(7 << at.magnitude_shift)) |
                                   magnitude << at.magnitude_shift);
  run[at.sign_byte] =
      uint8_t((run[at.sign_byte] & ~(1 << at.sign_shift)) | (code < 0) << at.sign_shift);
}
WLIB_HOST_DEVICE constexpr int load_code(const uint8_t* run, Position at) {
  const int magnitude = run[at.magnitude_byte] >> at.magnitude_shift & 7;
  return run[at.sign_byte] >> at.sign_shift & 1 ? -magnitude : magnitude;
}

// A word of codes -> the E4M3 bytes of its first and second columns.
WLIB_HOST_DEVICE constexpr uint32_t first_bytes(uint32_t word) { return word & kCodeMask; }
WLIB_HOST_DEVICE constexpr uint32_t second_bytes(uint32_t word) {
  return (word >> 4 | word << 28) & kCodeMask;
}

}  // namespace wlib::int4kv

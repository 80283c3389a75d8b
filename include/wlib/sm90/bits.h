// Bit operations that the compiler does not pick well by itself.
#pragma once

#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

// (value & mask) | bits in one LOP3; written in C++ with two constants it becomes two.
WLIB_DEVICE uint32_t and_or(uint32_t value, uint32_t mask, uint32_t bits) {
#if WLIB_ON_DEVICE
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(value), "r"(mask), "r"(bits));
  return out;
#else
  return (value & mask) | bits;
#endif
}

// The bits of `a` where the mask's are set, those of `b` elsewhere: one LOP3, see and_or.
WLIB_DEVICE uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
#if WLIB_ON_DEVICE
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(out) : "r"(mask), "r"(a), "r"(b));
  return out;
#else
  return (mask & a) | (~mask & b);
#endif
}

// Byte i is the one of `low` (0 to 3) or `high` (4 to 7) that the lower three bits of nibble i of
// `selector` name; with the nibble's highest bit set, that byte's sign bit, eight times.
WLIB_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#if WLIB_ON_DEVICE
  uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
  return out;
#else
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> 4 * i & 15;
    const uint32_t byte = ((nibble & 4 ? high : low) >> (nibble & 3) * 8) & 0xff;
    out |= (nibble < 8 ? byte : byte >> 7 ? 0xffu : 0u) << 8 * i;
  }
  return out;
#endif
}

// Copies a value that is rarely computed to a register of its own. Where it meets the same value of
// a path that is taken often, the compiler might otherwise copy on that one.
WLIB_DEVICE void copy_here(float& value) {
#if WLIB_ON_DEVICE
  asm volatile("mov.b32 %0, %0;" : "+f"(value));
#else
  (void)value;
#endif
}

// Index of the lowest bit that is set; there is one.
WLIB_DEVICE int lowest_bit(uint32_t bits) {
#if WLIB_ON_DEVICE
  return __ffs(int(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// The larger of two numbers that are not negative; NaN beats every number.
WLIB_DEVICE float max_or_nan(float a, float b) {
#if WLIB_ON_DEVICE
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
#else
  // NaN's bits, as an integer, are larger than any number's.
  return __builtin_bit_cast(uint32_t, a) > __builtin_bit_cast(uint32_t, b) ? a : b;
#endif
}

}  // namespace wlib::sm90

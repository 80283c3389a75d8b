// From a packed tile in shared memory to wgmma's A fragments and to the scales of a thread's rows.
#pragma once

#include <vector_types.h>

#include "wlib/layout/int4_tile.h"
#include "wlib/numerics/odd_code.h"
#include "wlib/sm90/bits.h"
#include "wlib/sm90/platform.h"

namespace wlib::int4fp8 {

// What the bytes of a fragment stand for, in units of 2^-9.
enum class Fragment {
  kOdd,  // 2q + 1: five logic operations and two shifts per eight weights; sum(x) must be taken off
  kCode,  // q: seven, and two multiplications; nothing to take off
};

// Eight weights: four for the `a` register, four for the `b` register.
template <Fragment kFragment>
WLIB_DEVICE void decode_eight(uint32_t word, uint32_t& a, uint32_t& b) {
  if constexpr (kFragment == Fragment::kOdd) {
    a = sm90::and_or(word, 0x8e8e8e8eu, kOddPlusOne);
    b = sm90::and_or(word << 7, 0x80808080u, sm90::and_or(word >> 3, 0x0e0e0e0eu, kOddPlusOne));
  } else {  // q = m or -(m + 1): a negative code adds its sign bit and one to the magnitude
    a = (word >> 1 & 0x07070707u) + (word >> 7 & 0x01010101u) * 0x81u;
    b = (word >> 4 & 0x07070707u) + (word & 0x01010101u) * 0x81u;
  }
}

// A thread's 64 codes of one tile -> A fragments of four k steps.
template <Fragment kFragment>
WLIB_DEVICE void load_fragments(const uint8_t* tile, uint32_t (&a)[4][4]) {
  const auto* codes = reinterpret_cast<const uint4*>(tile) + sm90::thread_in_warpgroup();
  WLIB_UNROLL
  for (int half = 0; half < 2; ++half) {
    const uint4 w = codes[half * sm90::kWarpgroupThreads];
    decode_eight<kFragment>(w.x, a[2 * half][0], a[2 * half][1]);
    decode_eight<kFragment>(w.y, a[2 * half][2], a[2 * half][3]);
    decode_eight<kFragment>(w.z, a[2 * half + 1][0], a[2 * half + 1][1]);
    decode_eight<kFragment>(w.w, a[2 * half + 1][2], a[2 * half + 1][3]);
  }
}

// Of the two rows that the thread accumulates: group scales, and 1 + 2z of their zero points.
template <class C>
struct RowPair {
  float scale[2], zero[2];

  WLIB_DEVICE RowPair(const uint8_t* tile, int group) {
    constexpr int4::Layout kLayout{C::kGroups, C::kZeros};
    const int t = sm90::thread_in_warpgroup();
    const int at = group * int4::kTileRows / 2 + t / 32 * 8 + t % 32 / 4;
    const uint32_t bits = reinterpret_cast<const uint32_t*>(tile + kLayout.scales_offset())[at];
    scale[0] = __builtin_bit_cast(float, bits << 16);
    scale[1] = __builtin_bit_cast(float, bits & 0xffff0000u);
    if constexpr (C::kZeros) {
      const float2 z = reinterpret_cast<const float2*>(tile + kLayout.zeros_offset())[at];
      zero[0] = 1 + 2 * z.x;
      zero[1] = 1 + 2 * z.y;
    }
  }
};

}  // namespace wlib::int4fp8

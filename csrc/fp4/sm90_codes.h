// From packed codes to what the tensor cores multiply. The kernels stay agnostic of the type: what
// shares a scale is a block, and becomes eight words {k step, half}, kExpanded of each code word.
//
// wgmma takes the columns of K in any order, as long as both operands have the same one. Lane q of
// a quad holds words {step, half} at bytes 32 step + 16 half + 4 q of a row of 128; here they are
// all of block q of a stage, so that a thread that has a's fragments looks at one scale only.
#pragma once

#include "wlib/numerics/fp4_carrier.h"
#include "wlib/params/fp4.h"
#include "wlib/sm90/bits.h"
#include "wlib/sm90/convert.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::fp4 {

constexpr int kQuad = 4;                // threads, and blocks of a row, per stage
constexpr int kSteps = 4, kHalves = 2;  // wgmmas of a stage, words of a thread and row in each

template <int kWords>
struct alignas(4 * kWords) CodeWords {
  static constexpr int kCount = kWords;
  uint32_t word[kWords];  // eight codes each
};

// MXFP4 as E5M2, the scale folded in: code * 2^d, d counted from the row's base.
struct FoldedCodes {
  static constexpr const char* kName = "fold8";
  using Op = sm90::WgmmaFp8<sm90::Fp8::kE5M2, sm90::Fp8::kE5M2>::Rs;
  using Words = CodeWords<4>;  // a block of 32
  using Scale = uint8_t;       // d - kLeast
  using Factor = CarrierTable;
  static constexpr int kBlock = kMxBlock;
  static constexpr int kExpanded = 2;  // words that eight codes become
  // From here on each step of d adds one to all exponents; E5M2 would hold two binades more, as
  // subnormals.
  static constexpr int kLeast = -13;

  WLIB_DEVICE static Factor factor(Scale scale) {
    constexpr CarrierTable kFirst = carrier_table(Carrier::kE5M2, kLeast),
                           kNext = carrier_table(Carrier::kE5M2, kLeast + 1);
    return {kFirst.low + scale * (kNext.low - kFirst.low),
            kFirst.high + scale * (kNext.high - kFirst.high)};
  }
  // Codes 0 to 3, then 4 to 7.
  WLIB_DEVICE static void expand(uint32_t codes, Factor table, uint32_t (&out)[kExpanded]) {
    const uint32_t magnitudes = codes & 0x77777777u;
    // The sign of an odd code is the highest bit of a byte, that of an even one four bits further.
    const uint32_t even = codes << 4;
    const uint32_t signs[] = {sm90::permute_bytes(even, codes, 0x5140),
                              sm90::permute_bytes(even, codes, 0x7362)};
    WLIB_UNROLL
    for (int i = 0; i < kExpanded; ++i) {
      const uint32_t four = sm90::permute_bytes(table.low, table.high, magnitudes >> i * 16);
      out[i] = sm90::and_or(signs[i], 0x80808080u, four);
    }
  }
};

// Either format as BF16: code times scale, which is exact.
struct BF16Codes {
  static constexpr const char* kName = "bf16";
  using Op = sm90::WgmmaBF16<64>::Rs;
  using Words = CodeWords<2>;  // half an mxfp4 block, or an nvfp4 block
  using Scale = uint16_t;      // bits of BF16
  using Factor = uint32_t;     // twice
  static constexpr int kBlock = kNvBlock;
  static constexpr int kExpanded = 4;

  WLIB_DEVICE static Factor factor(Scale scale) { return scale * 0x00010001u; }
  // Codes j and j + 4.
  WLIB_DEVICE static void expand(uint32_t codes, Factor factor, uint32_t (&out)[kExpanded]) {
    // The bits of a code, at the upper end of BF16's fraction and the lower one of its exponent,
    // are its value times 2^-126.
    constexpr uint32_t kUnit = 0x7e807e80u;  // 2^126
    WLIB_UNROLL
    for (int j = 0; j < kExpanded; ++j) {
      const uint32_t magnitudes = j < 2 ? codes << (6 - 4 * j) : codes >> (4 * j - 6);
      const uint32_t bits =
          sm90::and_or(codes << (12 - 4 * j), 0x80008000u, magnitudes & 0x01c001c0u);
      out[j] = sm90::multiply_bf16x2(sm90::multiply_bf16x2(bits, kUnit), factor);
    }
  }
};

}  // namespace wlib::fp4

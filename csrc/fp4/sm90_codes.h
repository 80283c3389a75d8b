// From packed codes to what the tensor cores multiply. The kernels stay agnostic of the type: what
// shares a scale is a block, and becomes eight words {k step, half}, kExpanded of each code word.
//
// wgmma takes the columns of K in any order, as long as both operands have the same one. Lane q of
// a quad holds words {step, half} at bytes 32 step + 16 half + 4 q of a row of 128; here they are
// all of block q of a stage, so that a thread that has a's fragments looks at one scale only.
#pragma once

#include "fp4/sm90_expand.h"
#include "wlib/params/fp4.h"
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
    expand_carrier(codes, table, out);
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
    expand_pairs(codes, out);
    WLIB_UNROLL
    for (uint32_t& pair : out)
      pair = sm90::multiply_bf16x2(sm90::multiply_bf16x2(pair, kPairUnit), factor);
  }
};

}  // namespace wlib::fp4

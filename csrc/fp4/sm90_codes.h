// From packed codes to what the tensor cores multiply. The kernels stay agnostic of the type: a
// block is what one thread decodes, into eight words {k step, half} that belong to lane q of four.
//
// wgmma takes the columns of K in any order, as long as both operands have the same one. Lane q of
// a quad holds words {step, half} at bytes 32 step + 16 half + 4 q of a row of 128; here they are
// all of block q of a stage, so that a thread looks at one scale only.
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
  uint32_t word[kWords];  // eight codes each
};

// MXFP4 as E5M2, the scale folded in: code * 2^d, d counted from the row's base.
struct FoldedCodes {
  static constexpr const char* kName = "fold8";
  using Op = sm90::WgmmaFp8<sm90::Fp8::kE5M2, sm90::Fp8::kE5M2>::Rs;
  using Words = CodeWords<4>;  // a block of 32
  using Scale = uint8_t;       // number of a table
  static constexpr int kBlock = kMxBlock;
  static constexpr int kTables = carrier_range(Carrier::kE5M2).binades() + 1;
  static constexpr Scale kNaN = kTables - 1;

  // By one thread per table.
  WLIB_DEVICE static CarrierTable table(int number) {
    constexpr uint32_t kEveryByte = 0x01010101u * carrier_nan(Carrier::kE5M2);
    if (number == kNaN) return {kEveryByte, kEveryByte};
    return carrier_table(Carrier::kE5M2, number + carrier_range(Carrier::kE5M2).least);
  }
  WLIB_DEVICE static void decode(const Words& codes, Scale scale, const CarrierTable* tables,
                                 uint32_t (&out)[kSteps][kHalves]) {
    const CarrierTable t = tables[scale];
    WLIB_UNROLL
    for (int i = 0; i < kSteps * kHalves; ++i) {
      const uint32_t four = codes.word[i / kHalves] >> i % kHalves * 16;
      const uint32_t magnitudes = sm90::permute_bytes(t.low, t.high, four & 0x7777u);
      // 0xff for a negative code, else 0x80.
      const uint32_t negative = sm90::permute_bytes(0x80808080u, 0x80808080u, four);
      out[i / kHalves][i % kHalves] = sm90::and_or(negative << 7, 0x80808080u, magnitudes);
    }
  }
};

// Either format as BF16: code times scale, which is exact.
struct BF16Codes {
  static constexpr const char* kName = "bf16";
  using Op = sm90::WgmmaBF16<64>::Rs;
  using Words = CodeWords<2>;  // half an mxfp4 block, or an nvfp4 block
  using Scale = uint16_t;      // bits of BF16
  static constexpr int kBlock = kNvBlock;
  static constexpr int kTables = 1;  // none is used

  WLIB_DEVICE static CarrierTable table(int) { return {}; }
  WLIB_DEVICE static void decode(const Words& codes, Scale scale, const CarrierTable*,
                                 uint32_t (&out)[kSteps][kHalves]) {
    // The bits of a code, at the upper end of BF16's fraction and the lower one of its exponent,
    // are its value times 2^-126.
    constexpr uint32_t kUnit = 0x7e807e80u;  // 2^126
    const uint32_t factor = scale * 0x00010001u;
    WLIB_UNROLL
    for (int i = 0; i < kSteps * kHalves; ++i) {
      const uint32_t word = codes.word[i / 4];
      const int j = i % 4;  // codes j and j + 4 of the word
      const uint32_t magnitudes = j < 2 ? word << (6 - 4 * j) : word >> (4 * j - 6);
      const uint32_t bits =
          sm90::and_or(word << (12 - 4 * j), 0x80008000u, magnitudes & 0x01c001c0u);
      out[i / kHalves][i % kHalves] =
          sm90::multiply_bf16x2(sm90::multiply_bf16x2(bits, kUnit), factor);
    }
  }
};

}  // namespace wlib::fp4

// INT4 atoms in wlib::atoms_linear's kernel: from packed codes to A fragments of 16-bit numbers,
// exactly, and from products to sums by the scales in FP32.
//
// A thread's word of a packed tile (layout/int4_tile.h) has four neighbouring columns of two rows:
// one step of an FP8 wgmma. A 16-bit wgmma of 16 columns takes pairs 8 columns apart. So the
// activations' columns are put in the order that the words have, once for all atoms of a step:
// of each 16, pairs 0, 2, 4, 6, 1, 3, 5, 7. Sums do not mind.
#pragma once

#include "atoms/sm90_linear_tiles.h"
#include "int4fp8/sm90_fragments.h"
#include "wlib/sm90/half2.h"
#include "wlib/sm90/sync.h"

namespace wlib::atoms {

// By all consumers, before their products.
template <class C>
WLIB_DEVICE void arrange_columns(uint8_t* x, int barrier) {
  constexpr int kUnits = kTileBytes / 16;
  for (int i = sm90::thread_index(); i < C::kTiles * C::kTokens * kUnits / 2;
       i += C::kConsumerThreads) {
    const int row = i / (kUnits / 2), unit = i % (kUnits / 2) * 2 ^ row % 8;
    auto* units = reinterpret_cast<uint4*>(x) + row * kUnits;
    const uint4 a = units[unit], b = units[unit ^ 1];
    units[unit] = {a.x, a.z, b.x, b.z};
    units[unit ^ 1] = {a.y, a.w, b.y, b.w};
  }
  sm90::fence_proxy_async();
  sm90::barrier_sync(barrier, C::kConsumerThreads);
}

// A code's magnitude and the bit of its odd code, put into a 16-bit float without an exponent, are
// 2q + 1 in units of that type's smallest number, eight times that for the second row. One fused
// multiply-add scales it up and takes off the one: what is left is q, in units of 1 / kUnit.
template <FloatType kType>
struct OddUnits {
  static constexpr uint32_t kFirst = 0x7f007f00, kSecond = 0x7d807d80;  // 2^127, 2^124
  static constexpr uint32_t kMinusOne = 0xbc80bc80;                     // -2^-6
  static constexpr float kUnit = 32;
  static WLIB_DEVICE uint32_t number(uint32_t odd, uint32_t factor) {
    return sm90::fma_bf16x2(odd, factor, kMinusOne);
  }
};
template <>
struct OddUnits<FloatType::kFloat16> {
  static constexpr uint32_t kFirst = 0x78007800, kSecond = 0x6c006c00;  // 2^15, 2^12
  static constexpr uint32_t kMinusOne = 0x98009800;                     // -2^-9
  static constexpr float kUnit = 256;
  static WLIB_DEVICE uint32_t number(uint32_t odd, uint32_t factor) {
    return sm90::half2_fma(odd, factor, kMinusOne);
  }
};

// Eight codes -> the A fragments of 16 columns. 13 instructions.
template <FloatType kType>
WLIB_DEVICE void decode_word(uint32_t word, uint32_t (&a)[4]) {
  using Units = OddUnits<kType>;
  const uint32_t signs = word << 7;  // of the second row, where those of the first one were
  WLIB_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    const uint32_t first = sm90::permute_bytes(word, word, pair ? 0x3322 : 0x1100);
    const uint32_t second = sm90::permute_bytes(word, signs, pair ? 0x7362 : 0x5140);
    a[2 * pair] = Units::number(sm90::and_or(first, 0x800e800e, 0x00010001), Units::kFirst);
    a[2 * pair + 1] = Units::number(sm90::and_or(second, 0x80708070, 0x00080008), Units::kSecond);
  }
}

template <int kGroups_>
struct PackedGroups {
  static constexpr int kGroups = kGroups_;
  static constexpr bool kZeros = false;
};

// A tile of 64 rows x 128 columns of INT4; x [2][32 tokens x 64 columns], arranged.
template <class C, int kGroups>
WLIB_DEVICE void add_int4_tile(const uint8_t* tile, const uint8_t* x, const float* coef,
                               float (&sums)[C::kSums]) {
  constexpr int kHalves = 2, kSteps = kTileColumns / 16;  // of a half, which is a tile of x
  constexpr int kGroupSteps = kSteps * kHalves / kGroups;
  constexpr int kIssued = kGroupSteps < kSteps ? kGroupSteps : kSteps;
  const int t = sm90::thread_in_warpgroup();
  const auto* channel = reinterpret_cast<const float*>(tile + kPackedTileBytes);
  const int row = sm90::accumulator_row(t, 0);
  const float unit[2] = {channel[row] * OddUnits<C::kType>::kUnit,
                         channel[row + 8] * OddUnits<C::kType>::kUnit};
  uint32_t a[kSteps][4];
  float products[C::kSums], scaled[C::kSums];
  WLIB_UNROLL
  for (int half = 0; half < kHalves; ++half) {
    const uint4 w = reinterpret_cast<const uint4*>(tile)[half * sm90::kWarpgroupThreads + t];
    decode_word<C::kType>(w.x, a[0]);
    decode_word<C::kType>(w.y, a[1]);
    decode_word<C::kType>(w.z, a[2]);
    decode_word<C::kType>(w.w, a[3]);
    WLIB_UNROLL
    for (int first = 0; first < kSteps; first += kIssued) {
      const int step = half * kSteps + first, group = step / kGroupSteps;
      multiply_fragments<C, kIssued>(products, a, first, x + half * C::kTokenBytes,
                                     step % kGroupSteps != 0);
      const int4fp8::RowPair<PackedGroups<kGroups>> rows(tile, group);  // tensor cores work
      const float scale[2] = {rows.scale[0] * unit[0], rows.scale[1] * unit[1]};
      sm90::wgmma_wait<0>(products);
      if ((step + kIssued) % kGroupSteps != 0) continue;
      WLIB_UNROLL
      for (int v = 0; v < C::kSums; ++v) {
        const float s = scale[v / 2 % 2];
        scaled[v] = group == 0 ? s * products[v] : fmaf(s, products[v], scaled[v]);
      }
    }
  }
  WLIB_UNROLL
  for (int i = 0; i < C::kSums / 4; ++i) {
    const auto c = *reinterpret_cast<const float2*>(coef + sm90::accumulator_column(t, 4 * i));
    WLIB_UNROLL
    for (int v = 4 * i; v < 4 * i + 4; ++v) sums[v] = fmaf(v % 2 ? c.y : c.x, scaled[v], sums[v]);
  }
}

template <class C>
WLIB_DEVICE void add_int4_tile(int groups, const uint8_t* tile, const uint8_t* x, const float* coef,
                               float (&sums)[C::kSums]) {
  if (groups == 1)
    add_int4_tile<C, 1>(tile, x, coef, sums);
  else if (groups == 2)
    add_int4_tile<C, 2>(tile, x, coef, sums);
  else
    add_int4_tile<C, 4>(tile, x, coef, sums);
}

// A tile of 64 rows x 64 columns of 16 bits; x arranged.
template <class C>
WLIB_DEVICE void add_arranged_tile(const uint8_t* tile, const uint8_t* x, const float* coef,
                                   float (&sums)[C::kSums]) {
  constexpr int kSteps = kTileColumns / 16;
  const int t = sm90::thread_in_warpgroup();
  const int row = sm90::accumulator_row(t, 0);
  uint32_t a[kSteps][4];
  WLIB_UNROLL
  for (int i = 0; i < kSteps * 2; ++i) {
    const uint8_t* at =
        tile + (row + i % 2 * 8) * kTileBytes + (i / 2 * 32 + t % 4 * 8 ^ row % 8 * 16);
    const auto four = *reinterpret_cast<const uint2*>(at);
    a[i / 2][i % 2] = four.x;
    a[i / 2][i % 2 + 2] = four.y;
  }
  float products[C::kSums];
  multiply_fragments<C, kSteps>(products, a, 0, x);
  add_products(coef, products, sums);
}

}  // namespace wlib::atoms

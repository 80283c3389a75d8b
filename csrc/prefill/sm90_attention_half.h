// Softmax on FP16 scores, two at a time: the steps of sm90_attention_rows.h for registers that hold
// two neighbouring keys of a row.
//
// A step's keys' scales are divided by their largest, k_unit, so that scores stay as small as
// products of codes. 2^((s - highest) * scale + offset): the difference comes first, so that no
// product overflows upwards whatever the scale is, and the offset, which depends on the row's
// largest score so far, is computed in FP32.
#pragma once

#include "prefill/sm90_attention_rows.h"
#include "wlib/sm90/half2.h"

namespace wlib::prefill {

constexpr float kLargestHalf = 65504, kSmallestHalf = 5.9604645e-8f;  // 2^-24
constexpr uint32_t kNoHalf = 0xfc00;                                  // -inf

WLIB_DEVICE uint32_t same_halves(float x) { return sm90::pack_half2(x, x); }

// The scales of this thread's keys, sixteen FP16 numbers: those of register 2j and 2j + 1 are [j].
struct HalfScales {
  uint32_t of[kKeys / 8];
  WLIB_DEVICE explicit HalfScales(const uint16_t (&scales)[kKeys]) {
    const auto* at = reinterpret_cast<const Unit*>(&scales[sm90::lane_index() % 4 * (kKeys / 4)]);
    WLIB_UNROLL
    for (int i = 0; i < kKeys / 8; ++i) of[i] = at[i / 4].word[i % 4];
  }
};

template <int kScores>
WLIB_DEVICE void score(const AttentionKernelParams&, const HalfStepScales& scales,
                       const KeyTile& tile, bool masked, const RowPair& rows,
                       uint32_t (&s)[kScores], StepRows& step) {
  const HalfScales k(scales.k);
  WLIB_UNROLL
  for (int v = 0; v < kScores; ++v) s[v] = sm90::half2_mul(s[v], k.of[v / 2]);
  if (masked) {
    const int column = sm90::accumulator_column(sm90::thread_in_warpgroup(), 0);
    WLIB_UNROLL
    for (int v = 0; v < kScores; ++v) {
      const ColumnRange seen = visible_columns(rows, tile, v % 2, column);
      const int key = v / 2 * 8;
      if (key < seen.begin || key >= seen.end) s[v] = (s[v] & 0xffff0000) | kNoHalf;
      if (key + 1 < seen.begin || key + 1 >= seen.end) s[v] = (s[v] & 0xffff) | kNoHalf << 16;
    }
  }
  uint32_t highest[2] = {s[0], s[1]};
  WLIB_UNROLL
  for (int v = 2; v < kScores; ++v) highest[v % 2] = sm90::half2_max(highest[v % 2], s[v]);
  // Both rows in one register.
  uint32_t both = sm90::half2_max((highest[0] & 0xffff) | highest[1] << 16,
                                  highest[0] >> 16 | (highest[1] & 0xffff0000));
  both = sm90::half2_max(both, sm90::warp_shuffle_xor(both, 1));
  both = sm90::half2_max(both, sm90::warp_shuffle_xor(both, 2));
  const float2 of_rows = sm90::unpack_half2(both);
  WLIB_UNROLL
  for (int r = 0; r < 2; ++r) {
    float scale = rows.scale[r] * scales.k_unit;  // NaN remains
    if (scale > kLargestHalf) scale = kLargestHalf;
    if (scale < kSmallestHalf) scale = kSmallestHalf;
    step.scale[r] = scale;
    step.highest[r] = r ? of_rows.y : of_rows.x;
    step.largest[r] = fmaxf(rows.largest[r], step.highest[r] * scale);
  }
}

template <int kScores>
WLIB_DEVICE void exponentiate(const HalfStepScales& scales, RowPair& rows, uint32_t (&s)[kScores],
                              StepRows& step) {
  const float unit = scales.unit == 0 ? rows.unit : scales.unit;
  WLIB_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float offset = step.advance(rows, unit, r) + step.highest[r] * step.scale[r];
    // -inf less -inf would be NaN.
    const float top = step.highest[r] < -kLargestHalf ? -kLargestHalf : step.highest[r];
    const uint32_t highest = same_halves(top), scale = same_halves(step.scale[r]),
                   begin = same_halves(offset);
    WLIB_UNROLL
    for (int v = r; v < kScores; v += 2) {
      const uint32_t below = sm90::half2_sub(s[v], highest);
      s[v] = sm90::half2_exp2(sm90::half2_fma(below, scale, begin));
    }
    uint32_t sum[kScores / 4];
    WLIB_UNROLL
    for (int i = 0; i < kScores / 4; ++i) sum[i] = sm90::half2_add(s[4 * i + r], s[4 * i + 2 + r]);
    WLIB_UNROLL
    for (int half = kScores / 8; half > 0; half /= 2) {
      WLIB_UNROLL
      for (int i = 0; i < half; ++i) sum[i] = sm90::half2_add(sum[i], sum[i + half]);
    }
    const float2 two = sm90::unpack_half2(sum[0]);
    rows.sum[r] = rows.sum[r] * step.rescale[r] + (two.x + two.y);
  }
  rows.unit = unit;
}

template <int kScores>
WLIB_DEVICE void scale_values(const HalfStepScales& scales, uint32_t (&s)[kScores]) {
  const HalfScales scale(scales.v);
  WLIB_UNROLL
  for (int v = 0; v < kScores; ++v) s[v] = sm90::half2_mul(s[v], scale.of[v / 2]);
}

template <int kScores>
WLIB_DEVICE void make_fragments(const uint32_t (&s)[kScores], uint32_t (&p)[kScores / 8][4]) {
  WLIB_UNROLL
  for (int g = 0; g < kScores / 4; ++g) {  // sixteen keys
    WLIB_UNROLL
    for (int r = 0; r < 2; ++r) {
      const uint32_t low = sm90::half2_to_e4m3x2(s[4 * g + r]);
      p[g / 2][g % 2 * 2 + r] = low | uint32_t(sm90::half2_to_e4m3x2(s[4 * g + 2 + r])) << 16;
    }
  }
}

}  // namespace wlib::prefill

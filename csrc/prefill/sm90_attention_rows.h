// A consumer thread's two rows of queries: their scales, masks, softmax and results.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <limits>

#include "prefill/sm90_attention_config.h"
#include "wlib/sm90/convert.h"
#include "wlib/sm90/exponential.h"

namespace wlib::prefill {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kNone = -std::numeric_limits<float>::infinity();
// Probabilities are 2^8 times too large everywhere: at most 256 of E4M3's 448, and its smallest
// numbers are 2^-17 of the row's largest probability.
constexpr float kProbabilityLog2 = 8;

// What takes a product of codes of row `row` to the units of log2: 2^x instead of e^x.
WLIB_DEVICE float score_scale(const AttentionKernelParams& p, const AttentionItem& item, int row) {
  return p.q_scale[item.query(p, row)] * p.softmax_scale * kLog2E;
}

// Scores are in units of log2.
struct RowPair {
  float scale[2];        // |score_scale|, never 0: -inf times it is -inf
  float mean[2];         // score with what was taken off all keys
  int begin[2], end[2];  // keys that the row sees
  float largest[2];      // score so far
  float sum[2];          // of this thread's probabilities, relative to the largest score
  float unit;            // of the output: the last step's largest value scale

  // Rows beyond the tile see nothing.
  WLIB_DEVICE RowPair(const AttentionKernelParams& p, const AttentionItem& item, int first_row) {
    unit = 1;
    WLIB_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + 8 * r;
      largest[r] = kNone;
      sum[r] = mean[r] = 0;
      scale[r] = std::numeric_limits<float>::min();
      begin[r] = end[r] = 0;
      if (row >= item.rows) continue;
      const KeyRange range = item.range(p, row / item.group);
      begin[r] = int(range.begin);
      end[r] = int(range.end);
      const float own = fabsf(score_scale(p, item, row));
      if (!(own < scale[r])) scale[r] = own;
    }
  }
};

// Of row r, counted from the thread's first column in the step.
struct ColumnRange {
  int begin, end;
};
WLIB_DEVICE ColumnRange visible_columns(const RowPair& rows, const KeyTile& tile, int r,
                                        int column) {
  const int last = rows.end[r] - tile.first;
  return {rows.begin[r] - tile.first - column, (last < tile.count ? last : tile.count) - column};
}

WLIB_DEVICE float quad_sum(float x) {
  x += sm90::warp_shuffle_xor(x, 1);
  return x + sm90::warp_shuffle_xor(x, 2);
}
WLIB_DEVICE float quad_max(float x) {
  x = fmaxf(x, sm90::warp_shuffle_xor(x, 1));
  return fmaxf(x, sm90::warp_shuffle_xor(x, 2));
}

// rows.mean: the four lanes of a row share its channels.
template <class C>
WLIB_DEVICE void multiply_mean(const AttentionKernelParams& p, const AttentionItem& item,
                               int first_row, RowPair& rows) {
  const float* mean = p.key_mean + item.kv_head * C::kHeadDim;
  WLIB_UNROLL
  for (int r = 0; r < 2; ++r) {
    float sum = 0;
    const int row = first_row + 8 * r;
    if (row < item.rows) {
      const float scale = score_scale(p, item, row);
      const auto* q = reinterpret_cast<const uint32_t*>(p.q + item.query(p, row) * C::kHeadDim);
      for (int i = sm90::lane_index() % 4; i < C::kHeadDim / 4; i += 4) {
        const float2 low = sm90::e4m3x2_to_float2(uint16_t(q[i]));
        const float2 high = sm90::e4m3x2_to_float2(uint16_t(q[i] >> 16));
        sum += low.x * mean[4 * i] + low.y * mean[4 * i + 1] + high.x * mean[4 * i + 2] +
               high.y * mean[4 * i + 3];
      }
      sum *= scale;
    }
    rows.mean[r] = quad_sum(sum);
  }
}

// What a step's softmax needs to know of its two rows.
struct StepRows {
  float scale[2];    // what takes a score to the units of log2
  float highest[2];  // score of the step, before that
  float largest[2];  // score so far, in units of log2
  // Of the output so far, whose unit becomes `unit`: what it is to be multiplied with.
  float rescale[2], factor[2];

  // The exponent of 2 that probabilities of the step begin with; and the rows go on.
  WLIB_DEVICE float advance(RowPair& rows, float unit, int r) {
    const float base = largest[r] == kNone ? 0.0f : largest[r];  // a row that has seen nothing
    rescale[r] = sm90::exp2_fast(rows.largest[r] - base);
    factor[r] = rescale[r] * (rows.unit / unit);
    rows.largest[r] = largest[r];
    return kProbabilityLog2 - base;
  }
};

// Scores of a step, in place: times their keys' scales, capped, masked. Finds the largest ones.
template <int kScores>
WLIB_DEVICE void score(const AttentionKernelParams& p, const StepScales& scales,
                       const KeyTile& tile, bool masked, const RowPair& rows, float (&s)[kScores],
                       StepRows& step) {
  const int column = sm90::accumulator_column(sm90::thread_in_warpgroup(), 0);
  WLIB_UNROLL
  for (int v = 0; v < kScores; v += 4) {
    const float2 k = *reinterpret_cast<const float2*>(&scales.k[column + v / 4 * 8]);
    WLIB_UNROLL
    for (int i = 0; i < 4; ++i) s[v + i] *= i % 2 ? k.y : k.x;
  }
  step.scale[0] = rows.scale[0];
  step.scale[1] = rows.scale[1];
  if (p.softcap > 0) {
    const float cap = p.softcap * kLog2E, inverse = 1.0f / cap;
    WLIB_UNROLL
    for (int v = 0; v < kScores; ++v) {
      const int r = v / 2 % 2;
      s[v] = cap * sm90::tanh_fast((s[v] * rows.scale[r] + rows.mean[r]) * inverse);
    }
    step.scale[0] = step.scale[1] = 1;
  }
  if (masked) {
    WLIB_UNROLL
    for (int r = 0; r < 2; ++r) {
      const ColumnRange seen = visible_columns(rows, tile, r, column);
      WLIB_UNROLL
      for (int v = 2 * r; v < kScores; v += 4) {
        WLIB_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int key = v / 4 * 8 + i;
          if (key < seen.begin || key >= seen.end) s[v + i] = kNone;
        }
      }
    }
  }
  WLIB_UNROLL
  for (int r = 0; r < 2; ++r) {
    float highest = kNone;
    WLIB_UNROLL
    for (int v = 2 * r; v < kScores; v += 4) highest = fmaxf(highest, fmaxf(s[v], s[v + 1]));
    step.highest[r] = quad_max(highest);
    step.largest[r] = fmaxf(rows.largest[r], step.highest[r] * step.scale[r]);
  }
}

// Scores -> probabilities, in place.
template <int kScores>
WLIB_DEVICE void exponentiate(const StepScales& scales, RowPair& rows, float (&s)[kScores],
                              StepRows& step) {
  const float unit = scales.unit == 0 ? rows.unit : scales.unit;
  WLIB_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float offset = step.advance(rows, unit, r);
    float sum = 0;
    WLIB_UNROLL
    for (int v = 2 * r; v < kScores; v += 4) {
      WLIB_UNROLL
      for (int i = v; i < v + 2; ++i) s[i] = sm90::exp2_fast(s[i] * step.scale[r] + offset);
      sum += s[v] + s[v + 1];
    }
    rows.sum[r] = rows.sum[r] * step.rescale[r] + sum;
  }
  rows.unit = unit;
}

// Probabilities times the values' scales, as wgmma wants them; they sum up without these scales.
template <int kScores>
WLIB_DEVICE void scale_values(const StepScales& scales, float (&s)[kScores]) {
  const int column = sm90::accumulator_column(sm90::thread_in_warpgroup(), 0);
  WLIB_UNROLL
  for (int v = 0; v < kScores; v += 4) {
    const float2 scale = *reinterpret_cast<const float2*>(&scales.v[column + v / 4 * 8]);
    WLIB_UNROLL
    for (int i = 0; i < 4; ++i) s[v + i] *= i % 2 ? scale.y : scale.x;
  }
}

// An accumulator's keys 2q, 2q + 1, 2q + 8, 2q + 9 of sixteen are a fragment's four bytes, which is
// the order of the values' slots.
template <int kScores>
WLIB_DEVICE void make_fragments(const float (&s)[kScores], uint32_t (&p)[kScores / 16][4]) {
  WLIB_UNROLL
  for (int g = 0; g < kScores / 8; ++g) {  // sixteen keys
    WLIB_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int v = 8 * g + 2 * r;
      p[g / 2][g % 2 * 2 + r] = sm90::float_to_e4m3x4(s[v], s[v + 1], s[v + 4], s[v + 5]);
    }
  }
}

// What a row's output is multiplied with at the end, and its LSE.
struct RowEnd {
  float factor, lse;
};
WLIB_DEVICE RowEnd finish_row(const AttentionKernelParams& p, const RowPair& rows, int r,
                              int head) {
  float sum = quad_sum(rows.sum[r]), largest = rows.largest[r], rescale = 1;
  const float mean = p.softcap > 0 ? 0.0f : rows.mean[r];
  if (p.sinks && p.plan.splits == 1) {  // relative to the larger of the two: neither overflows
    const float sink = p.sinks[head] * kLog2E - mean;
    const float top = fmaxf(largest, sink);
    if (top > kNone) {
      rescale = sm90::exp2_fast(largest - top);
      sum = sum * rescale + sm90::exp2_fast(sink - top + kProbabilityLog2);
      largest = top;
    }
  }
  if (sum == 0) return {0, kNone};  // a row that sees nothing
  return {rows.unit * rescale / sum, (largest + log2f(sum) - kProbabilityLog2 + mean) * kLn2};
}

// Two neighbouring outputs.
WLIB_DEVICE void store_two(void* to, FloatType type, int64_t at, float a, float b) {
  if (type == FloatType::kFloat32) {
    *reinterpret_cast<float2*>(static_cast<float*>(to) + at) = {a, b};
  } else if (type == FloatType::kBFloat16) {
    *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(to) + at) =
        __nv_bfloat162{__float2bfloat16_rn(a), __float2bfloat16_rn(b)};
  } else {
    *reinterpret_cast<__half2*>(static_cast<__half*>(to) + at) =
        __half2{__float2half_rn(a), __float2half_rn(b)};
  }
}

}  // namespace wlib::prefill

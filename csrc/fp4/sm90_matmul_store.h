// The end of a tile of y: scales of rows and tensors, alpha, and the one rounding.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "fp4/sm90_matmul_config.h"

namespace wlib::fp4 {

// Two neighbouring outputs in a type.
struct FloatPair {
  using One = float;
  using Two = float2;
  static WLIB_DEVICE float round(float v) { return v; }
};
struct BF16Pair {
  using One = __nv_bfloat16;
  using Two = __nv_bfloat162;
  static WLIB_DEVICE __nv_bfloat16 round(float v) { return __float2bfloat16_rn(v); }
};
struct HalfPair {
  using One = __half;
  using Two = __half2;
  static WLIB_DEVICE __half round(float v) { return __float2half_rn(v); }
};
// store(Pair{}) with the pair of a type, so that loops within branch on it once.
template <class Store>
WLIB_DEVICE void with_pair(FloatType type, const Store& store) {
  if (type == FloatType::kFloat32) return store(FloatPair{});
  if (type == FloatType::kBFloat16) return store(BF16Pair{});
  store(HalfPair{});
}

WLIB_DEVICE float global_scale(const float* scale) { return scale ? *scale : 1.0f; }

// A tile by the consumers, rows from first_row on, kParts * 64 columns from first_column on.
template <class Pair, int kParts, int kRegs>
WLIB_DEVICE void store_sums(Pair, const MatmulKernelParams& p, int first_row, int first_column,
                            const float (&sum)[kParts][kRegs]) {
  using One = typename Pair::One;
  using Two = typename Pair::Two;
  const int t = sm90::thread_index();
  const float alpha = p.alpha * (global_scale(p.a_global) * global_scale(p.b_global));
  const bool even = p.n % 2 == 0;  // then pairs are aligned, and whole
  WLIB_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + sm90::accumulator_row(t, 2 * r);
    if (row >= p.m) return;
    const float of_row = p.a_row ? p.a_row[row] : 1.0f;
    One* y = static_cast<One*>(p.y) + int64_t(row) * p.n;
    WLIB_UNROLL
    for (int i = 0; i < kParts * kRegs / 4; ++i) {
      const int part = i * 4 / kRegs, v = i * 4 % kRegs + 2 * r;
      const int column = first_column + part * kPartColumns + sm90::accumulator_column(t, v);
      if (column >= p.n) break;
      const bool both = column + 1 < p.n;
      float of_column[2] = {1, 1};
      if (p.b_row) {
        of_column[0] = p.b_row[column];
        if (both) of_column[1] = p.b_row[column + 1];
      }
      const One first = Pair::round(sum[part][v] * of_row * of_column[0] * alpha),
                second = Pair::round(sum[part][v + 1] * of_row * of_column[1] * alpha);
      if (even) {
        *reinterpret_cast<Two*>(y + column) = Two{first, second};
      } else {
        y[column] = first;
        if (both) y[column + 1] = second;
      }
    }
  }
}

template <int kParts, int kRegs>
WLIB_DEVICE void store_tile(const MatmulKernelParams& p, int first_row, int first_column,
                            const float (&sum)[kParts][kRegs]) {
  with_pair(p.out_type, [&](auto pair) { store_sums(pair, p, first_row, first_column, sum); });
}

}  // namespace wlib::fp4

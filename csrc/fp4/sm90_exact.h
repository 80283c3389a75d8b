// y = alpha * a b^T of packed MXFP4 as the CPU computes it in mode exact32, bit for bit: products
// of 32 codes are added up as integers, and these sums in FP32 in order of K. For checking, not
// fast: one thread per element of y (sm_90a; also runs in the simulator).
//
// Compiled without contraction of products and sums.
#pragma once

#include "fp4/sm90_matmul_store.h"
#include "wlib/numerics/e8m0.h"

namespace wlib::fp4 {

constexpr int kExactThreads = 256;

struct ExactParams {
  Packed a, b;
  int m, n, k;
  float alpha;
  void* y;
  FloatType out_type;
};

// Twice the value of the code at the lower end of `bits`.
WLIB_DEVICE int twice_e2m1(uint32_t bits) {
  constexpr uint64_t kTwice = 0x0c08060403020100;
  const int magnitude = int(kTwice >> (bits & 7) * 8 & 0xff);
  return bits & 8 ? -magnitude : magnitude;
}

WLIB_DEVICE float exact_dot(const ExactParams& p, int row, int column) {
  const int blocks = p.k / kMxBlock;
  const int64_t a_first = int64_t(row) * blocks, b_first = int64_t(column) * blocks;
  const auto* a = reinterpret_cast<const CodeWords<4>*>(p.a.codes) + a_first;
  const auto* b = reinterpret_cast<const CodeWords<4>*>(p.b.codes) + b_first;
  float total = 0;
  WLIB_NO_UNROLL
  for (int i = 0; i < blocks; ++i) {
    const CodeWords<4> x = a[i], y = b[i];
    int sum = 0;  // in units of 1/4, at most 32 * 144
    WLIB_UNROLL
    for (int j = 0; j < kMxBlock; ++j) {
      const int shift = j % 8 * 4;
      sum += twice_e2m1(x.word[j / 8] >> shift) * twice_e2m1(y.word[j / 8] >> shift);
    }
    total += float(sum) * 0.25f * e8m0_to_float(p.a.scales[a_first + i]) *
             e8m0_to_float(p.b.scales[b_first + i]);
  }
  return total;
}

inline ExactParams make_exact_params(const MatmulParams& op) {
  return {op.a.packed, op.b.packed, int(op.a.rows), int(op.b.rows),
          int(op.k),   op.alpha,    op.y,           op.out_type};
}

WLIB_KERNEL_RESIDENT(kExactThreads, 2) exact_kernel(WLIB_GRID_CONSTANT ExactParams p) {
  const int64_t count = int64_t(p.m) * p.n;
  const int64_t step = int64_t(sm90::grid_size_x()) * kExactThreads;
  for (int64_t i = int64_t(sm90::block_index_x()) * kExactThreads + sm90::thread_index(); i < count;
       i += step) {
    const float value = exact_dot(p, int(i / p.n), int(i % p.n)) * p.alpha;
    with_pair(p.out_type, [&]<class Pair>(Pair) {
      static_cast<typename Pair::One*>(p.y)[i] = Pair::round(value);
    });
  }
}

}  // namespace wlib::fp4

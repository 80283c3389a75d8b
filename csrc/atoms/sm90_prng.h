// sum_i coef[i] * basis_i with the bases made in registers. A thread owns one block of neighbouring
// elements and adds up all bases in order, so that the sum is that of every other device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "wlib/params/prng.h"
#include "wlib/sm90/sync.h"

namespace wlib::atoms {

constexpr int kPrngThreads = 128;

WLIB_DEVICE void store_value(const PrngParams& p, int64_t at, float value) {
  if (p.value_type == FloatType::kFloat32)
    static_cast<float*>(p.values)[at] = value;
  else if (p.value_type == FloatType::kBFloat16)
    static_cast<uint16_t*>(p.values)[at] = __builtin_bit_cast(uint16_t, __float2bfloat16_rn(value));
  else
    static_cast<uint16_t*>(p.values)[at] = __builtin_bit_cast(uint16_t, __float2half_rn(value));
}

// The four elements of a block of basis i.
template <Distribution kDistribution>
WLIB_DEVICE void basis_values(const PrngParams& p, uint32_t i, uint64_t block,
                              float (&values)[kBlockElements]) {
  const Draw d = draw(p.seed, p.tensor, i, block);
  if constexpr (kDistribution == Distribution::kUniform) {
    WLIB_UNROLL
    for (int j = 0; j < kBlockElements; ++j) values[j] = uniform_value(d.word[j]);
  } else {
    const NormalPair low = normal_values(d.word[0], d.word[1]);
    const NormalPair high = normal_values(d.word[2], d.word[3]);
    WLIB_UNROLL
    for (int j = 0; j < 2; ++j) {
      values[j] = low.value[j];
      values[2 + j] = high.value[j];
    }
  }
}

template <Distribution kDistribution>
WLIB_KERNEL(kPrngThreads)
expand_kernel(WLIB_GRID_CONSTANT PrngParams p) {
  constexpr int kElements = kDistribution == Distribution::kSign ? kSignElements : kBlockElements;
  const auto* coef = static_cast<const float*>(p.coef);
  const int64_t block = int64_t(sm90::block_index_x()) * kPrngThreads + sm90::thread_index();
  float sums[kElements] = {};
  if constexpr (kDistribution == Distribution::kSign) {
    for (int first = 0; first < p.count; first += kSignBases) {
      const Draw d = draw(p.seed, p.tensor, uint32_t(first) / kSignBases, uint64_t(block));
      WLIB_UNROLL
      for (int i = 0; i < kSignBases; ++i) {
        const float c = first + i < p.count ? coef[first + i] : 0.0f;
        WLIB_UNROLL
        for (int j = 0; j < kElements; ++j) sums[j] += sign_value(d.word[i], j, c);
      }
    }
  } else {
    for (int i = 0; i < p.count; ++i) {
      float values[kBlockElements];
      basis_values<kDistribution>(p, uint32_t(i), uint64_t(block), values);
      WLIB_UNROLL
      for (int j = 0; j < kElements; ++j) sums[j] = fmaf(coef[i], values[j], sums[j]);
    }
  }
  WLIB_UNROLL
  for (int j = 0; j < kElements; ++j) {
    if (block * kElements + j < p.elements) store_value(p, block * kElements + j, sums[j]);
  }
}

}  // namespace wlib::atoms

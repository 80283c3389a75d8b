// What wlib::prng_expand and its gradient hand to their kernels, CPU and CUDA alike.
#pragma once

#include <cstdint>

#include "wlib/numerics/philox.h"
#include "wlib/params/float_type.h"

namespace wlib::rebuild {

// values[e] = sum_i coef[i] * basis_i(e), added up in order of i by fused multiply-adds from 0;
// backwards coef[i] = sum_e values[e] * basis_i(e).
struct PrngParams {
  void* coef;       // [count], float32; float64 where values are
  void* values;     // [elements] of value_type
  float* partials;  // CUDA, backwards: [chunks, count]
  int64_t elements;
  int32_t count;
  uint32_t tensor;
  uint64_t seed;
  Distribution distribution;
  FloatType value_type;
};

}  // namespace wlib::rebuild

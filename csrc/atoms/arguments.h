// Checks that the ops on shared atoms have in common.
#pragma once

#include <string>
#include <vector>

#include "torch/summed_type.h"

namespace wlib::atoms {

constexpr int64_t kMaxArrays = 1 << 15;  // atoms or layers: their products stay small numbers

inline void check_coefficient(const Checker& check, FloatType summed, const Tensor& t) {
  check.dtype(t, "coef", summed == FloatType::kFloat64 ? ScalarType::Double : ScalarType::Float);
  check.contiguous(t, "coef");
}
inline void check_like(const Checker& check, const Tensor& t, const char* argument,
                       std::span<const int64_t> shape, const Tensor& reference,
                       const char* reference_name) {
  check.shape(t, argument, shape);
  check.same_device(t, argument, reference, reference_name);
  check.contiguous(t, argument);
}

}  // namespace wlib::atoms

// Checks that the ops on shared atoms have in common.
#pragma once

#include <string>
#include <vector>

#include "torch/checks.h"

namespace wlib::atoms {

constexpr int64_t kMaxArrays = 1 << 15;  // atoms or layers: their products stay small numbers

// The type of what is summed: on the CPU also float64.
inline FloatType summed_type(const Checker& check, const Tensor& t, const char* argument) {
  if (t.scalar_type() == ScalarType::Double && t.is_cpu()) return FloatType::kFloat64;
  return check.floating(t.scalar_type(), argument);
}
// The type of something that goes with it: float64 goes with float64 alone.
inline FloatType matching_type(const Checker& check, FloatType summed, ScalarType type,
                               const char* argument) {
  if (summed != FloatType::kFloat64) return check.floating(type, argument);
  check.require(type == ScalarType::Double, argument,
                std::string(argument) + " of dtype torch.float64 like what is summed",
                dtype_name(type));
  return FloatType::kFloat64;
}
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

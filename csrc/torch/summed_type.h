// The dtype of what an op adds up, and of what goes with it.
#pragma once

#include <string>

#include "torch/checks.h"

namespace wlib {

// A type that goes with tensors where `like` is: on the CPU also float64.
inline FloatType float_type_on(const Checker& check, const Tensor& like, ScalarType type,
                               const char* argument) {
  if (type == ScalarType::Double && like.is_cpu()) return FloatType::kFloat64;
  return check.floating(type, argument);
}
// The type of what is summed.
inline FloatType summed_type(const Checker& check, const Tensor& t, const char* argument) {
  return float_type_on(check, t, t.scalar_type(), argument);
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

}  // namespace wlib

// The dtype of an operand, where a kernel learns it at run time.
#pragma once

#include <cstddef>

namespace wlib {

enum class FloatType : int { kFloat32, kBFloat16, kFloat16, kFloat64, kE4M3 };

constexpr size_t bytes_of(FloatType type) {
  return type == FloatType::kFloat64   ? 8
         : type == FloatType::kFloat32 ? 4
         : type == FloatType::kE4M3    ? 1
                                       : 2;
}

}  // namespace wlib

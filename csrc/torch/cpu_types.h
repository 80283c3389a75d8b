// The run-time FloatType as a C++ type.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "wlib/params/int4fp8.h"

namespace wlib {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Calls f with a null pointer of the C++ type that `type` names.
template <class F>
auto with_type(FloatType type, F f) {
  switch (type) {
    case FloatType::kFloat32: return f(static_cast<float*>(nullptr));
    case FloatType::kBFloat16: return f(static_cast<BFloat16*>(nullptr));
    default: return f(static_cast<Half*>(nullptr));
  }
}
inline void to_float(const void* from, FloatType type, int64_t offset, int64_t count, float* to) {
  with_type(type,
            [&]<class T>(T*) { std::copy_n(static_cast<const T*>(from) + offset, count, to); });
}

}  // namespace wlib

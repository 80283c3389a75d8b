// The run-time FloatType as a C++ type: elements as numbers, and back with one rounding.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Float8_e4m3fn.h>
#include <torch/headeronly/util/Half.h>

#include "wlib/params/float_type.h"

namespace wlib {

using torch::headeronly::BFloat16;
using torch::headeronly::Float8_e4m3fn;
using torch::headeronly::Half;

// Calls f with a null pointer of the C++ type that `type` names.
template <class F>
auto with_type(FloatType type, F f) {
  switch (type) {
    case FloatType::kFloat32: return f(static_cast<float*>(nullptr));
    case FloatType::kBFloat16: return f(static_cast<BFloat16*>(nullptr));
    case FloatType::kFloat16: return f(static_cast<Half*>(nullptr));
    case FloatType::kE4M3: return f(static_cast<Float8_e4m3fn*>(nullptr));
    default: return f(static_cast<double*>(nullptr));
  }
}
template <class Acc>
void load(const void* from, FloatType type, int64_t offset, int64_t count, Acc* to) {
  with_type(type, [&]<class T>(T*) {
    const T* first = static_cast<const T*>(from) + offset;
    for (int64_t i = 0; i < count; ++i) to[i] = Acc(first[i]);
  });
}
template <class Acc>
void store(const Acc* from, void* to, FloatType type, int64_t offset, int64_t count) {
  with_type(type, [&]<class T>(T*) {
    T* first = static_cast<T*>(to) + offset;
    for (int64_t i = 0; i < count; ++i) first[i] = T(from[i]);
  });
}

}  // namespace wlib

// User-facing errors. Every message reads `wlib::op: expected <what>, got <value> (argument 'x')`;
// std::invalid_argument becomes ValueError in Python, where wlib/errors.py turns the dtype and the
// no-kernel kind into TypeError and NotImplementedError.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "wlib/params/float_type.h"

namespace wlib {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(std::span<const int64_t> sizes) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  out << ']';
  return out.str();
}
inline std::span<const int64_t> sizes_of(const Tensor& t) {
  return {t.sizes().data(), t.sizes().size()};
}
inline std::string shape_text(const Tensor& t) { return shape_text(sizes_of(t)); }

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "torch.float32";
    case ScalarType::Double: return "torch.float64";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Float8_e4m3fn: return "torch.float8_e4m3fn";
    case ScalarType::Float8_e5m2: return "torch.float8_e5m2";
    case ScalarType::Byte: return "torch.uint8";
    case ScalarType::Char: return "torch.int8";
    case ScalarType::Short: return "torch.int16";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Long: return "torch.int64";
    case ScalarType::Bool: return "torch.bool";
    default: return "another dtype";
  }
}

inline std::optional<FloatType> float_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return FloatType::kFloat32;
    case ScalarType::BFloat16: return FloatType::kBFloat16;
    case ScalarType::Half: return FloatType::kFloat16;
    default: return std::nullopt;
  }
}

// The checks of one call of one op.
class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

  [[noreturn]] void refuse(const char* argument, const std::string& expected,
                           const std::string& got) const {
    throw std::invalid_argument(std::string("wlib::") + op_ + ": expected " + expected + ", got " +
                                got + " (argument '" + argument + "')");
  }
  [[noreturn]] void no_kernel(const std::string& what) const {
    throw std::invalid_argument(std::string("wlib::") + op_ + ": no kernel for " + what);
  }
  // Texts are made only when they are needed: `expected` and `got` may be text, a number, or a
  // function that returns text.
  template <class Expected, class Got>
  void require(bool ok, const char* argument, const Expected& expected, const Got& got) const {
    if (!ok) refuse(argument, text(expected), text(got));
  }
  void dtype(const Tensor& t, const char* argument, ScalarType expected) const {
    if (t.scalar_type() != expected) {
      refuse(argument, std::string(argument) + " of dtype " + dtype_name(expected),
             dtype_name(t.scalar_type()));
    }
  }
  FloatType floating(ScalarType type, const char* argument) const {
    if (const auto known = float_type(type)) return *known;
    refuse(argument,
           std::string(argument) + " of dtype torch.float32, torch.bfloat16 or torch.float16",
           dtype_name(type));
  }
  void shape(const Tensor& t, const char* argument, std::span<const int64_t> expected) const {
    const auto sizes = sizes_of(t);
    if (!std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) {
      refuse(argument, std::string(argument) + " of shape " + shape_text(expected), shape_text(t));
    }
  }
  void contiguous(const Tensor& t, const char* argument) const {
    if (!t.is_contiguous()) {
      const auto strides = t.strides();
      refuse(argument, std::string("contiguous ") + argument,
             "strides " + shape_text({strides.data(), strides.size()}));
    }
  }
  void aligned(const void* pointer, const char* argument, size_t bytes) const {
    if (const size_t off = reinterpret_cast<uintptr_t>(pointer) % bytes) {
      refuse(argument,
             std::string(argument) + " at a " + std::to_string(bytes) + "-byte aligned address",
             "an address " + std::to_string(off) + " bytes off");
    }
  }
  void same_device(const Tensor& t, const char* argument, const Tensor& reference,
                   const char* reference_name) const {
    if (t.is_cuda() != reference.is_cuda() ||
        t.get_device_index() != reference.get_device_index()) {
      refuse(argument,
             std::string(argument) + " on " + device_text(reference) + " like " + reference_name,
             device_text(t));
    }
  }
  // Shape, device and strides of an operand; its dtype has been checked.
  void tensor(const Tensor& t, const char* argument, std::span<const int64_t> expected,
              const Tensor& reference, const char* reference_name) const {
    shape(t, argument, expected);
    same_device(t, argument, reference, reference_name);
    contiguous(t, argument);
  }
  static std::string device_text(const Tensor& t) {
    return t.is_cuda()  ? "cuda:" + std::to_string(t.get_device_index())
           : t.is_cpu() ? "cpu"
                        : "another device";
  }

 private:
  template <class T>
  static std::string text(const T& value) {
    if constexpr (std::is_invocable_v<T>)
      return value();
    else if constexpr (std::is_arithmetic_v<T>)
      return std::to_string(value);
    else
      return value;
  }
  const char* op_;
};

// A launcher's error text: either a device without a kernel or a CUDA failure.
[[noreturn]] inline void throw_cuda_error(const Checker& check, const std::string& text) {
  const std::string no_kernel = "no kernel for ";
  if (text.starts_with(no_kernel)) check.no_kernel(text.substr(no_kernel.size()));
  throw std::runtime_error("wlib: CUDA error: " + text);
}

// x seen as rows of length k: how many, and how far apart. Leading dimensions must collapse into
// one without a copy.
struct Rows {
  int64_t count, stride;
};
inline Rows rows_of(const Checker& check, const Tensor& x, const char* argument) {
  const auto sizes = sizes_of(x);
  constexpr int64_t kLimit = int64_t(1) << 31;  // kernels and grids count rows in 32 bits
  if (x.numel() / std::max<int64_t>(1, sizes.back()) >= kLimit)
    check.refuse(argument, std::string(argument) + " of fewer than 2^31 rows", shape_text(x));
  const auto strides = x.strides();
  const size_t last = sizes.size() - 1;
  const auto refuse = [&] {
    check.refuse(
        argument,
        std::string(argument) +
            " with unit stride in the last dimension and rows at one distance; call .contiguous()",
        "shape " + shape_text(x) + " with strides " + shape_text({strides.data(), strides.size()}));
  };
  if (x.numel() == 0) {
    int64_t count = 1;
    for (size_t i = 0; i < last; ++i) count *= sizes[i];
    return {count, sizes[last]};
  }
  if (sizes[last] > 1 && strides[last] != 1) refuse();
  Rows rows{1, sizes[last]};
  for (size_t i = last; i-- > 0;) {
    if (sizes[i] == 1) continue;
    if (rows.count == 1)
      rows.stride = strides[i];
    else if (strides[i] != rows.count * rows.stride)
      refuse();
    rows.count *= sizes[i];
  }
  return rows;
}

}  // namespace wlib

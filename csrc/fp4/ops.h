// The ops of family fp4, as the dispatcher calls them (schemas: registration.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "torch/text.h"

namespace wlib::fp4 {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Six tensors per side, rows before columns: codes, scales, global_scale, carrier, row_scale, mask;
// those that were not asked for have shape [0].
std::vector<Tensor> quantize(const Tensor& x, Text format, Text axis, Text scale_rule,
                             int64_t hadamard, std::optional<Tensor> signs,
                             std::optional<Tensor> global_scale, bool packed, Text carrier,
                             int64_t window, bool mask, bool swizzle, bool square, Text rounding,
                             std::optional<Tensor> seed, int64_t offset);
// The same six of the transposed matrix.
std::vector<Tensor> requantize_t(const Tensor& codes, const Tensor& scales,
                                 std::optional<Tensor> old_global_scale, Text format,
                                 Text scale_rule, int64_t hadamard, std::optional<Tensor> signs,
                                 std::optional<Tensor> global_scale, bool packed, Text carrier,
                                 int64_t window, bool mask, bool swizzle, bool square,
                                 Text rounding, std::optional<Tensor> seed, int64_t offset);
Tensor matmul(const Tensor& a, const Tensor& a_scale, const Tensor& b, const Tensor& b_scale,
              std::optional<Tensor> a_global, std::optional<Tensor> b_global, double alpha,
              Text mode, std::optional<ScalarType> out_dtype);
// Random signs of a rotation, int8 [size].
Tensor signs(const Tensor& seed, int64_t size, int64_t offset);
Tensor hadamard(const Tensor& x, int64_t size, std::optional<Tensor> signs, bool inverse);

}  // namespace wlib::fp4

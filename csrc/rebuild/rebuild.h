// wlib::rebuild: weights from a base and few numbers, many layers at a time (schema:
// registration.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <span>
#include <vector>

#include "wlib/params/rebuild.h"

namespace wlib::rebuild {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// w0: one per layer, or none at all. operands: two per layer of low rank or kron, four of hadamard,
// one of block_affine. forms: values of RebuildForm.
std::vector<Tensor> rebuild(std::vector<Tensor> w0, std::vector<Tensor> operands,
                            std::vector<int64_t> forms, std::vector<double> scales,
                            std::optional<ScalarType> out_dtype, std::optional<int64_t> seed);
void rebuild_out(std::vector<Tensor> w0, std::vector<Tensor> operands, std::vector<int64_t> forms,
                 std::vector<double> scales, std::optional<int64_t> seed, std::vector<Tensor> out);

// The specification of every form, in float32, or in float64 for float64 operands.
void rebuild_cpu(std::span<const RebuildLayer> layers, Rounding rounding);

}  // namespace wlib::rebuild

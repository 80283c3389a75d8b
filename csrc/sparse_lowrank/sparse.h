// The ops on sparse matrices in tiles, as the dispatcher calls them (schemas: registration.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "wlib/params/sparse_lowrank.h"

namespace wlib::sparse_lowrank {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor sparse_matmul(const Tensor& x, const Tensor& values, const Tensor& positions,
                     const Tensor& offsets, int64_t rows, int64_t columns, bool transposed,
                     std::optional<Tensor> base, std::optional<Tensor> bias);
Tensor sparse_sample(const Tensor& dy, const Tensor& x, const Tensor& positions,
                     const Tensor& offsets, std::optional<ScalarType> out_dtype);

void sparse_matmul_cpu(const SparseMatmulParams& p);
void sparse_sample_cpu(const SampleParams& p);

}  // namespace wlib::sparse_lowrank

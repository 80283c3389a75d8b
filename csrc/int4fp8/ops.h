// The ops of family int4fp8, as the dispatcher calls them (schemas: registration.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "torch/text.h"

namespace wlib::int4fp8 {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor gemm(const Tensor& x, const Tensor& weight, const Tensor& x_scale, int64_t n,
            int64_t group_size, std::optional<Tensor> bias, std::optional<Tensor> residual,
            Text activation, std::optional<Tensor> out_scale, std::optional<Tensor> x_sums,
            std::optional<ScalarType> out_dtype, int64_t layout_version, bool prefetch_weight);
void gemm_out(const Tensor& x, const Tensor& weight, const Tensor& x_scale, int64_t n,
              int64_t group_size, std::optional<Tensor> bias, std::optional<Tensor> residual,
              Text activation, std::optional<Tensor> out_scale, std::optional<Tensor> x_sums,
              int64_t layout_version, bool prefetch_weight, const Tensor& out);
Tensor gemm_grouped(const Tensor& x, const Tensor& weight, const Tensor& x_scale,
                    const Tensor& expert_offsets, int64_t n, int64_t group_size,
                    std::optional<Tensor> bias, std::optional<Tensor> residual, Text activation,
                    std::optional<Tensor> out_scale, std::optional<Tensor> x_sums,
                    std::optional<ScalarType> out_dtype, int64_t layout_version);
void gemm_grouped_out(const Tensor& x, const Tensor& weight, const Tensor& x_scale,
                      const Tensor& expert_offsets, int64_t n, int64_t group_size,
                      std::optional<Tensor> bias, std::optional<Tensor> residual, Text activation,
                      std::optional<Tensor> out_scale, std::optional<Tensor> x_sums,
                      int64_t layout_version, const Tensor& out);
// All three return codes, scales, the group sums if sums_group is given, and the new residual if
// residual is given.
std::vector<Tensor> quantize(const Tensor& x, std::optional<int64_t> sums_group);
std::vector<Tensor> rms_norm_quantize(const Tensor& x, const Tensor& weight, double eps,
                                      std::optional<Tensor> residual,
                                      std::optional<int64_t> sums_group);
std::vector<Tensor> silu_mul_quantize(const Tensor& gate_up, bool interleaved,
                                      std::optional<int64_t> sums_group);
Tensor group_sums(const Tensor& xq, int64_t group_size);

}  // namespace wlib::int4fp8

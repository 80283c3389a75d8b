// The CPU kernels: the executable specification of the family, on the same numerics and layout
// headers as the GPU kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "wlib/params/int4fp8.h"

namespace wlib::int4fp8 {

void gemm_cpu(const GemmParams& p,
              const torch::stable::Tensor& x);  // x only says where scratch tensors come from
void gemm_grouped_cpu(const GemmParams& p, const torch::stable::Tensor& x);
void quantize_cpu(const QuantizeParams& p);
void group_sums_cpu(const GroupSumsParams& p);

// The routes gemm_cpu chooses from, one line each; for wlib.info().
const char* gemm_cpu_rows();

}  // namespace wlib::int4fp8

// The CPU kernels: the executable specification of the family, on the same numerics headers as the
// GPU kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "wlib/params/fp4.h"

namespace wlib::fp4 {

void quantize_cpu(const QuantizeParams& p);
void hadamard_cpu(const HadamardParams& p);
void signs_cpu(const SignsParams& p);
// `like` only says where scratch tensors come from.
void matmul_cpu(const MatmulParams& p, const torch::stable::Tensor& like);

}  // namespace wlib::fp4

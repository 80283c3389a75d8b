// wlib::atoms_linear, as the dispatcher calls it (schema: registration.cpp), and its CPU route.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "wlib/params/atoms_linear.h"

namespace wlib::atoms {

using torch::stable::Tensor;

Tensor linear(const Tensor& x, const Tensor& atoms, const Tensor& coef, std::optional<Tensor> bias,
              std::optional<Tensor> base);

// `like` is any tensor on the CPU.
void linear_cpu(const LinearParams& p, const Tensor& like);

}  // namespace wlib::atoms

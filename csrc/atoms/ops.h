// The ops on shared atoms, as the dispatcher calls them (schemas: registration.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>
#include <vector>

#include "torch/text.h"

namespace wlib::atoms {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor reconstruct(const Tensor& atoms, const Tensor& coef, std::optional<Tensor> base,
                   std::optional<Tensor> residual_a, std::optional<Tensor> residual_b, double scale,
                   std::optional<ScalarType> out_dtype);
std::tuple<Tensor, Tensor> reconstruct_backward(const Tensor& grad, const Tensor& atoms,
                                                const Tensor& coef, double scale);

// A step of an optimiser on atoms and moments, in place; returns the gradient of coef.
struct StepOptions {
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;  // from 1
};
Tensor atoms_step(const Tensor& grad, const Tensor& atoms, const Tensor& coef,
                  const Tensor& exp_avg, std::optional<Tensor> exp_avg_sq, Text rule, double scale,
                  double lr, double beta1, double beta2, double eps, double weight_decay,
                  int64_t step);

// tensors: S lists of T tensors, one after the other; coef [P, S] -> P lists of T tensors.
std::vector<Tensor> combine(std::vector<Tensor> tensors, const Tensor& coef);

}  // namespace wlib::atoms

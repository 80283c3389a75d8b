// wlib::atoms_linear, as the dispatcher calls it (schema: registration.cpp), and its CPU route.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "wlib/params/atoms.h"
#include "wlib/params/atoms_linear.h"

namespace wlib::atoms {

using torch::stable::Tensor;

Tensor linear(const Tensor& x, const Tensor& atoms, const Tensor& coef, std::optional<Tensor> bias,
              std::optional<Tensor> base, std::optional<int64_t> n,
              std::optional<int64_t> group_size, int64_t layout_version);

// `like` is any tensor on the CPU.
void linear_cpu(const LinearParams& p, const Tensor& like);

// How the weight base + sum_s coef[s] atoms[s] is made by the kernels of atoms_reconstruct.
class WeightSum {
 public:
  WeightSum(const LinearParams& p, void* weight, FloatType type);
  WeightSum(const WeightSum&) = delete;  // params points to members

  ReconstructParams params{};

 private:
  std::vector<const void*> atoms_;
  void* weight_;
};

}  // namespace wlib::atoms

// The arguments of the GEMM ops, and their checks.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "torch/checks.h"
#include "wlib/params/int4fp8.h"

namespace wlib::int4fp8 {

// Hidden, as the tensors are that it refers to.
struct [[gnu::visibility("hidden")]] GemmArguments {
  const Tensor &x, &weight, &x_scale;
  int64_t n, group_size;
  const std::optional<Tensor>&bias, &residual;
  const std::string& activation;
  const std::optional<Tensor>&out_scale, &x_sums;
  int64_t layout_version;
  const Tensor* expert_offsets = nullptr;  // of the grouped ops

  std::vector<int64_t> out_shape() const;  // once `activation` has been checked
};

// What a kernel gets, apart from y. `out_argument` is what the caller named the output's dtype by.
GemmParams check_arguments(const Checker& check, const GemmArguments& a, ScalarType out_dtype,
                           const char* out_argument);

// An output that the caller brought; it may be the residual.
void check_out(const Checker& check, const GemmArguments& a, const Tensor& out);

}  // namespace wlib::int4fp8

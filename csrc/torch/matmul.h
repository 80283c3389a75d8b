// torch's own matmul, for CPU routes that multiply values in FP32.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

namespace wlib {

// out = a b. The .out form, because autocast would turn the functional ones into BF16 products.
inline void matmul(const torch::stable::Tensor& a, const torch::stable::Tensor& b,
                   torch::stable::Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack = {from(a), from(b), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<torch::stable::Tensor>(stack[0]);  // drops the returned reference
}

}  // namespace wlib

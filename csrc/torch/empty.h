// New tensors, by the shortest way: torch::stable::new_empty goes through the dispatcher by name.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <span>
#include <vector>

namespace wlib {

// Contiguous, uninitialised, on the device of `like`.
inline torch::stable::Tensor new_empty(const torch::stable::Tensor& like,
                                       std::span<const int64_t> sizes,
                                       torch::headeronly::ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t distance = 1;
  for (size_t i = sizes.size(); i-- > 0; distance *= std::max<int64_t>(sizes[i], 1))
    strides[i] = distance;
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(),
                                                         strides.data(), type, device_type,
                                                         like.get_device_index(), &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace wlib

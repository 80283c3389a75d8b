// The current CUDA stream of a device, from a library that also loads where torch has no CUDA.
#pragma once

#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

// Exported by libtorch_cuda.so only. Weak: on a CPU build of torch it stays null, and no CUDA
// tensor can get here.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace wlib {

inline void* current_cuda_stream(int32_t device_index) {
  void* stream = nullptr;
  if (!aoti_torch_get_current_cuda_stream) {
    throw std::runtime_error(
        "wlib: this torch exports no CUDA stream (aoti_torch_get_current_cuda_stream is missing)");
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return stream;
}

}  // namespace wlib

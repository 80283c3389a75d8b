// Which GPUs the kernels of a launcher run on.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>
#include <string>

namespace wlib {

// Null for a device that runs code for one of `archs` (compute capability times 10), else the
// reason for which there is no kernel.
inline const char* refuse_device(int device, std::initializer_list<int> archs = {90}) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const auto text_of = [](int arch) {
    return std::to_string(arch / 10) + "." + std::to_string(arch % 10);
  };
  thread_local std::string text;
  text = "no kernel for compute capability " + text_of(major * 10 + minor) + " (rows:";
  for (const int arch : archs) {
    if (arch == major * 10 + minor) return nullptr;
    text += (arch == *archs.begin() ? " " : ", ") + text_of(arch);
  }
  text += ")";
  return text.c_str();
}

}  // namespace wlib

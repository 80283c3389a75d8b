// Host side: launches a kernel, in clusters if asked, with as much dynamic shared memory as it
// needs.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

namespace wlib::sm90 {

namespace detail {

// A kernel may use more than 48 KB only after asking, once per device.
inline cudaError_t allow_shared_memory(const void* kernel, int bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> allowed;  // (kernel, device) -> bytes
  int device;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const std::lock_guard lock(mutex);
  int& have = allowed[{kernel, device}];
  if (bytes <= have) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) have = bytes;
  return error;
}

}  // namespace detail

// kernel<<<grid, threads, smem_bytes, stream>>>(params), in clusters of `cluster` CTAs along x (1:
// none); grid.x must be a multiple of it.
template <class Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, int threads, int smem_bytes, int cluster,
                   cudaStream_t stream, const Params& params) {
  const auto* entry = reinterpret_cast<const void*>(kernel);
  if (const cudaError_t error = detail::allow_shared_memory(entry, smem_bytes)) return error;
  cudaLaunchAttribute shape = {};
  shape.id = cudaLaunchAttributeClusterDimension;
  shape.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = smem_bytes;
  config.stream = stream;
  config.attrs = &shape;
  config.numAttrs = cluster > 1;
  void* arguments[] = {const_cast<Params*>(&params)};
  return cudaLaunchKernelExC(&config, entry, arguments);
}

}  // namespace wlib::sm90

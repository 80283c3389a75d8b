// Host side: launches a kernel, in clusters if asked, with the dynamic shared memory it needs.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>
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

struct ClusterLaunch {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};

  ClusterLaunch(dim3 grid, int threads, int smem_bytes, int cluster, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {unsigned(cluster), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = smem_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;  // config points to attributes

  void start_early() { config.numAttrs = 2; }
};

}  // namespace detail

// Whether a kernel may start while the launch before it on the stream still runs: only one that
// waits for it itself (dependency.h).
enum class Start { kAfterLaunchBefore, kEarly };

// kernel<<<grid, threads, smem_bytes, stream>>>(params), in clusters of `cluster` CTAs along x (1:
// none); grid.x must be a multiple of it.
template <class Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, int threads, int smem_bytes, int cluster,
                   cudaStream_t stream, const Params& params,
                   Start start = Start::kAfterLaunchBefore) {
  const auto* entry = reinterpret_cast<const void*>(kernel);
  if (const cudaError_t error = detail::allow_shared_memory(entry, smem_bytes)) return error;
  detail::ClusterLaunch launch(grid, threads, smem_bytes, cluster, stream);
  if (start == Start::kEarly) launch.start_early();
  void* arguments[] = {const_cast<Params*>(&params)};
  return cudaLaunchKernelExC(&launch.config, entry, arguments);
}

// How many clusters of `cluster` CTAs the device runs at a time; asked once per kernel and device.
template <class Params>
cudaError_t resident_clusters(void (*kernel)(Params), int threads, int smem_bytes, int cluster,
                              int* count) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int>, int> known;  // (kernel, cluster, device)
  const auto* entry = reinterpret_cast<const void*>(kernel);
  int device;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error = detail::allow_shared_memory(entry, smem_bytes)) return error;
  const std::lock_guard lock(mutex);
  const auto [at, fresh] = known.try_emplace({entry, cluster, device}, 0);
  if (fresh) {
    detail::ClusterLaunch launch(dim3(cluster), threads, smem_bytes, cluster, nullptr);
    if (const cudaError_t error =
            cudaOccupancyMaxActiveClusters(&at->second, entry, &launch.config)) {
      known.erase(at);
      return error;
    }
  }
  *count = at->second;
  return cudaSuccess;
}

}  // namespace wlib::sm90

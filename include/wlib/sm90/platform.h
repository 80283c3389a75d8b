// One source, two targets. Under nvcc the primitives of sm90/ are PTX; under a host compiler they
// call the functional simulator (sim/device.h). Kernels include sm90/*.h and never test which one
// it is.
#pragma once

#include "wlib/platform.h"

#if defined(__CUDACC__)
#define WLIB_ON_DEVICE 1
// One CTA per SM: the compiler may then use all of its registers.
#define WLIB_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
// At least `ctas` of them per SM.
#define WLIB_KERNEL_RESIDENT(threads, ctas) __global__ void __launch_bounds__(threads, ctas)
#define WLIB_DEVICE __device__ __forceinline__
#define WLIB_GRID_CONSTANT const __grid_constant__
#else
#include "sim/device.h"
#define WLIB_ON_DEVICE 0
#define WLIB_KERNEL(threads) void
#define WLIB_KERNEL_RESIDENT(threads, ctas) void
#define WLIB_DEVICE inline
#define WLIB_GRID_CONSTANT const
#endif

namespace wlib::sm90 {

constexpr int kWarpThreads = 32;
constexpr int kWarpgroupThreads = 128;

// Registers per thread that a WLIB_KERNEL is launched with. They are all a CTA has: setmaxnreg only
// moves them from one warpgroup to another.
constexpr int launch_registers(int threads) {
  const int share = 65536 / threads / 8 * 8;
  return share < 255 ? share : 255;
}

// What setmaxnreg can give each thread of `consumers` warpgroups if a further one keeps `producer`.
constexpr int consumer_registers(int consumers, int producer) {
  const int pool = launch_registers((consumers + 1) * kWarpgroupThreads) * (consumers + 1);
  const int share = (pool - producer) / consumers / 8 * 8;
  return share < 240 ? share : 240;
}

#if WLIB_ON_DEVICE

WLIB_DEVICE int thread_index() { return int(threadIdx.x); }
WLIB_DEVICE int block_index_x() { return int(blockIdx.x); }
WLIB_DEVICE int block_index_y() { return int(blockIdx.y); }
WLIB_DEVICE int grid_size_x() { return int(gridDim.x); }
WLIB_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
// The CTA's dynamic shared memory, at a 1024-byte boundary as swizzled tiles need it.
template <class T>
WLIB_DEVICE T& dynamic_smem() {
  extern __shared__ __align__(1024) uint8_t bytes[];
  return *reinterpret_cast<T*>(bytes);
}
// Names a piece of shared memory for the simulator's findings.
WLIB_DEVICE void debug_name(const void*, size_t, const char*) {}
// Broadcasting makes the value provably uniform, so that branches on it do not split the warp.
WLIB_DEVICE int warp_uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

#else

inline int thread_index() { return sim::dev::thread_index(); }
inline int block_index_x() { return sim::dev::block_index(0); }
inline int block_index_y() { return sim::dev::block_index(1); }
inline int grid_size_x() { return sim::dev::grid_size(0); }
inline uint32_t shared_address(const void* p) { return sim::dev::shared_address(p); }
template <class T>
T& dynamic_smem() {
  return *static_cast<T*>(sim::dev::shared_base());
}
inline void debug_name(const void* p, size_t bytes, const char* name) {
  sim::dev::debug_name(p, bytes, name);
}
inline int warp_uniform(int value) { return int(sim::dev::warp_shuffle(uint32_t(value), 0)); }

#endif

WLIB_DEVICE int lane_index() { return thread_index() % kWarpThreads; }
WLIB_DEVICE int thread_in_warpgroup() { return thread_index() % kWarpgroupThreads; }
WLIB_DEVICE int warp_index() { return warp_uniform(thread_index() / kWarpThreads); }
WLIB_DEVICE int warpgroup_index() { return warp_uniform(thread_index() / kWarpgroupThreads); }

}  // namespace wlib::sm90

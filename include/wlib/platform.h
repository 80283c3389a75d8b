// One source, two targets: nvcc compiles it for the GPU, g++ for the CPU (specification, tests,
// simulator).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define WLIB_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define WLIB_HOST_DEVICE inline
#endif

#if defined(__CUDA_ARCH__)
#define WLIB_UNROLL _Pragma("unroll")
#define WLIB_UNROLL_TWICE _Pragma("unroll 2")
#define WLIB_NO_UNROLL _Pragma("unroll 1")
#else
#define WLIB_UNROLL
#define WLIB_UNROLL_TWICE
#define WLIB_NO_UNROLL
#endif

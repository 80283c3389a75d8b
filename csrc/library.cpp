// The version and the build of the library, read by python/wlib/_load.py through ctypes. The ops of
// a family are registered in its registration.cpp.
#include "int4fp8/cpu_kernels.h"
#include "torch/dispatch_table.h"

WLIB_EXPORT const char* wlib_version() { return WLIB_VERSION; }
WLIB_EXPORT const char* wlib_build_id() { return WLIB_BUILD_ID; }
WLIB_EXPORT const char* wlib_cuda_summary() { return WLIB_CUDA_SUMMARY; }
WLIB_EXPORT const char* wlib_cpu_isa() { return wlib::int4fp8::cpu_kernels().isa; }

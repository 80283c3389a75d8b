// The CUDA launchers, with no torch on this side. They return null, or the text of an error; one
// that starts with "no kernel for " names a device that no row of the table serves.
#pragma once

#include "wlib/params/int4fp8.h"

namespace wlib::int4fp8 {

const char* gemm_cuda(const GemmParams& p, int device, void* stream);
const char* quantize_cuda(const QuantizeParams& p, int device, void* stream);
// x and its rows at multiples of 16 bytes.
const char* group_sums_cuda(const GroupSumsParams& p, int device, void* stream);

// Whether the kernel for these arguments wants sums of x that it has not been given.
bool gemm_cuda_wants_sums(const GemmParams& p);

// The table by which gemm_cuda chooses, one line per row; for wlib.info(). With experts, by T
// tokens for E of them.
const char* gemm_cuda_rows();
const char* gemm_grouped_cuda_rows();

}  // namespace wlib::int4fp8

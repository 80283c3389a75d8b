// The CUDA launcher of fp4_matmul, with no torch on this side: null, or the text of an error; one
// that starts with "no kernel for " names what no row of the table serves.
#pragma once

#include "wlib/params/fp4.h"

namespace wlib::fp4 {

// What the operands lack for there to be a kernel, or null.
const char* refuse_matmul_cuda(const MatmulParams& p);
// workspace: as many bytes as matmul_cuda_workspace says, 128-byte aligned.
int64_t matmul_cuda_workspace(const MatmulParams& p);
const char* matmul_cuda(const MatmulParams& p, void* workspace, int device, void* stream);

// The table by which matmul_cuda chooses, one line per row; for wlib.info().
const char* matmul_cuda_rows();

}  // namespace wlib::fp4

// The CUDA launchers of the ops on sparse matrices, with no torch on this side: null, or the text
// of an error.
#pragma once

#include "wlib/params/sparse_lowrank.h"

namespace wlib::sparse_lowrank {

// `values` and `positions` are a workspace for the transposed order of float32 products, of the
// matrix's size.
const char* sparse_matmul_cuda(const SparseMatmulParams& p, float* values, int16_t* positions,
                               int device, void* stream);
const char* sparse_sample_cuda(const SampleParams& p, int device, void* stream);

}  // namespace wlib::sparse_lowrank

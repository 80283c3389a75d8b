// The CUDA launchers of the ops on shared atoms, with no torch on this side: null, or the text of
// an error.
#pragma once

#include <span>

#include "wlib/params/atoms.h"

namespace wlib::atoms {

// The arrays of the parameters lie one after the other, as in one tensor.
const char* reconstruct_cuda(const ReconstructParams& p, int device, void* stream);

// One set of parameters per tensor, in which only pointers, columns and types differ.
const char* combine_cuda(std::span<const ReconstructParams> tensors, int device, void* stream);

// How many sets of partial sums `p.partials` has room for.
int64_t partial_items(const ReconstructBackwardParams& p);
const char* reconstruct_backward_cuda(const ReconstructBackwardParams& p, int device, void* stream);

}  // namespace wlib::atoms

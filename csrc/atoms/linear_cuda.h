// The CUDA launcher of wlib::atoms_linear's own kernels, with no torch on this side: null, or the
// text of an error.
#pragma once

#include "wlib/params/atoms_linear.h"

namespace wlib::atoms {

// How many floats `partials` has room for.
int64_t linear_partials(const LinearParams& p);
// x of a 16-bit type, atoms too, E4M3 or INT4; columns a positive multiple of 8, or of 16 for E4M3;
// x, atoms and base at 16-byte addresses; fewer than 2^31 rows of all atoms together; at least one
// output.
const char* linear_cuda(const LinearParams& p, float* partials, int device, void* stream);

}  // namespace wlib::atoms

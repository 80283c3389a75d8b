// The CUDA launchers of wlib::prng_expand and prng_project, with no torch on this side: null, or
// the text of an error.
#pragma once

#include "wlib/params/prng.h"

namespace wlib::rebuild {

const char* prng_expand_cuda(const PrngParams& p, int device, void* stream);

// How many sets of partial sums `p.partials` has room for.
int64_t project_chunks(const PrngParams& p);
const char* prng_project_cuda(const PrngParams& p, int device, void* stream);

}  // namespace wlib::rebuild

// The CUDA launcher of wlib::prng_expand, with no torch on this side: null, or the text of an
// error.
#pragma once

#include "wlib/params/prng.h"

namespace wlib::atoms {

const char* prng_expand_cuda(const PrngParams& p, int device, void* stream);

}  // namespace wlib::atoms

// The CUDA launcher of wlib::rebuild, with no torch on this side: null, or the text of an error.
#pragma once

#include <span>

#include "wlib/params/rebuild.h"

namespace wlib::rebuild {

const char* rebuild_cuda(std::span<const RebuildLayer> layers, Rounding rounding, int device,
                         void* stream);

}  // namespace wlib::rebuild

// The launcher of the second stage of sums over the whole device: null, or the text of an error.
#pragma once

#include "wlib/params/atoms.h"

namespace wlib::atoms {

const char* finish_cuda(const FinishParams& p, void* stream);

}  // namespace wlib::atoms

// The CPU kernels of the ops on shared atoms: their executable specification.
#pragma once

#include "wlib/params/atoms.h"

namespace wlib::atoms {

void reconstruct_cpu(const ReconstructParams& p);
void reconstruct_backward_cpu(const ReconstructBackwardParams& p);

}  // namespace wlib::atoms

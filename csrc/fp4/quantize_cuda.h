// The launchers of the quantiser, of rotations and of their signs, with no torch on this side:
// null, or the text of an error.
#pragma once

#include <string>

#include "wlib/params/fp4.h"

namespace wlib::fp4 {

// One side or two of one source, of one format.
const char* quantize_cuda(const QuantizeParams* sides, int count, int device, void* stream);
const char* hadamard_cuda(const HadamardParams& p, int device, void* stream);
const char* signs_cuda(const SignsParams& p, int device, void* stream);

// The row of one of their dispatch tables, for each architecture of this build.
std::string quantize_cuda_rows(const char* kernel);

}  // namespace wlib::fp4

// Mode block_scaled of fp4_matmul on Blackwell, with no torch on this side.
#pragma once

#include <cstddef>
#include <functional>

#include "wlib/params/fp4.h"

namespace wlib::fp4 {

// What rows of codes and of the output, and addresses, are multiples of: TMA's rule.
constexpr int kBlockScaledBytes = 16;

// Compiled only into builds that ask for the architecture (WLIB_CUDA_ARCHS).
struct BlockScaledRow {
  int arch;  // code for sm_100a runs on compute capability 10.0 alone
  const char* text;
};
inline constexpr BlockScaledRow kBlockScaledRows[] = {
    {100, "sm_100a, mode block_scaled: CUTLASS, tiles of 256 x 256 by pairs of SMs\n"},
    {120, "sm_120a, mode block_scaled: CUTLASS, tiles of 128 x 128\n"},
};

// Gives so many bytes on the device, for work on its current stream.
using Allocate = std::function<void*(size_t)>;

// Null, or the text of an error; one that starts with "no kernel for " names a device that no row
// of this build serves.
const char* block_scaled_cuda(const MatmulParams& p, int device, void* stream,
                              const Allocate& allocate);
// The rows of this build, one per line.
const char* block_scaled_cuda_rows();

// One translation unit per architecture, format and type of the output: block_scaled_matmul.cu.
template <int kArch, bool kNv, FloatType kOut>
const char* launch_block_scaled(const MatmulParams& p, int device, void* stream,
                                const Allocate& allocate);

}  // namespace wlib::fp4

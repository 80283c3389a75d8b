// Mode block_scaled of wlib::fp4_matmul: operands as Blackwell's MMAs read them, both packed in one
// format, with scales in the 128x4 order.
#pragma once

#include "torch/checks.h"
#include "wlib/params/fp4.h"

namespace wlib::fp4 {

// Sizes and addresses; the same on every device, so that what runs on the CPU runs on a GPU.
void check_block_scaled(const Checker& check, const MatmulParams& p);
// On the current stream of the device of `like`, which says where a workspace comes from, too.
void block_scaled_on_cuda(const Checker& check, const MatmulParams& p, const Tensor& like);

}  // namespace wlib::fp4

// What every GEMM kernel of the family gets, and how it follows from the op's parameters.
#pragma once

#include "wlib/layout/int4_tile.h"
#include "wlib/params/int4fp8.h"
#include "wlib/sm90/tensor_map.h"

namespace wlib::int4fp8 {

struct KernelParams {
  sm90::TensorMap x;      // [m, k] E4M3, box tokens x 128, 128-byte swizzle; zeros beyond m and k
  const uint8_t* weight;  // packed, see layout/int4_tile.h
  const float* x_scale;   // [m]
  const void* bias;       // [n] or null
  void* y;                // [m, n]
  int m, n, k_tiles;
  int row_blocks, token_blocks;  // of 64 rows of the weight, and of as many tokens as a tile has
  FloatType bias_type, out_type;
};

// False if the driver refuses the tensor map of x.
inline bool make_kernel_params(const GemmParams& g, int tokens, KernelParams* p) {
  p->weight = g.weight;
  p->x_scale = g.x_scale;
  p->bias = g.bias;
  p->y = g.y;
  p->m = int(g.m);
  p->n = int(g.n);
  p->k_tiles = int(int4::ceil_div(g.k, int4::kTileColumns));
  p->row_blocks = int(int4::ceil_div(g.n, int4::kTileRows));
  p->token_blocks = int(int4::ceil_div(g.m, tokens));
  p->bias_type = g.bias_type;
  p->out_type = g.out_type;
  if (p->k_tiles == 0) return true;  // x is never read
  return sm90::make_tensor_map(&p->x, {g.x, uint64_t(g.m), uint64_t(g.k), uint64_t(g.x_stride),
                                       uint32_t(tokens), int4::kTileColumns, 1});
}

}  // namespace wlib::int4fp8

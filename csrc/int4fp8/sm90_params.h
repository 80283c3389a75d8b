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
  int m, n, k_tiles;
  int columns;                   // of y
  int row_blocks, token_blocks;  // of 64 rows of the weight, and of as many tokens as a tile has
  Epilogue epilogue;
};

// False if the driver refuses the tensor map of x.
inline bool make_kernel_params(const GemmParams& g, int tokens, KernelParams* p) {
  p->weight = g.weight;
  p->x_scale = g.x_scale;
  p->m = int(g.m);
  p->n = int(g.n);
  p->k_tiles = int(int4::ceil_div(g.k, int4::kTileColumns));
  p->row_blocks = int(int4::ceil_div(g.n, int4::kTileRows));
  p->token_blocks = int(int4::ceil_div(g.m, tokens));
  p->columns = int(g.epilogue.columns(g.n));
  p->epilogue = g.epilogue;
  if (p->k_tiles == 0) return true;  // x is never read
  return sm90::make_tensor_map(&p->x, {g.x, uint64_t(g.m), uint64_t(g.k), uint64_t(g.x_stride),
                                       uint32_t(tokens), int4::kTileColumns, 1});
}

}  // namespace wlib::int4fp8

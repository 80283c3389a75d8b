// What every GEMM kernel of the family gets, and how it follows from the op's parameters.
#pragma once

#include "wlib/layout/int4_tile.h"
#include "wlib/params/int4fp8.h"
#include "wlib/sm90/tensor_map.h"

namespace wlib::int4fp8 {

struct KernelParams {
  sm90::TensorMap
      x;  // [m, k] E4M3, box tokens of a CTA x 128, 128-byte swizzle; zeros beyond m and k
  const uint8_t* weight;  // packed, see layout/int4_tile.h; of all experts, one after the other
  const float* x_scale;   // [m]
  int m, n, k_tiles;
  int columns;                 // of y
  int row_blocks;              // of 64 rows of a weight
  int token_blocks;            // of as many tokens as a tile has; experts: at most so many
  const void* expert_offsets;  // null for one weight; [experts + 1] int32_t, or int64_t if wide
  bool wide_offsets;
  int experts;
  Epilogue epilogue;
};

// Every expert's last block may be short of tokens.
inline int64_t most_token_blocks(const GemmParams& g, int tokens) {
  if (!g.expert_offsets) return int4::ceil_div(g.m, tokens);
  const int64_t begun = g.experts < g.m ? g.experts : g.m;
  return begun + (g.m - begun) / tokens;
}

// Tiles of `tokens` tokens, of which each CTA of a cluster of `ctas` fetches its share. False if
// the driver refuses the tensor map of x.
inline bool make_kernel_params(const GemmParams& g, int tokens, KernelParams* p, int ctas = 1) {
  p->weight = g.weight;
  p->x_scale = g.x_scale;
  p->m = int(g.m);
  p->n = int(g.n);
  p->k_tiles = int(int4::ceil_div(g.k, int4::kTileColumns));
  p->row_blocks = int(int4::ceil_div(g.n, int4::kTileRows));
  p->token_blocks = int(most_token_blocks(g, tokens));
  p->expert_offsets = g.expert_offsets;
  p->wide_offsets = g.wide_offsets;
  p->experts = int(g.experts);
  p->columns = int(g.epilogue.columns(g.n));
  p->epilogue = g.epilogue;
  if (p->k_tiles == 0) return true;  // x is never read
  return sm90::make_tensor_map(&p->x, {g.x, uint64_t(g.m), uint64_t(g.k), uint64_t(g.x_stride),
                                       uint32_t(tokens / ctas), int4::kTileColumns, 1});
}

}  // namespace wlib::int4fp8

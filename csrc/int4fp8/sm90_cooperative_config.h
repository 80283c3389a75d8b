// The cooperative kernel's tiles and parameters, and how the parameters follow from an op's.
#pragma once

#include "wlib/layout/int4_tile.h"
#include "wlib/params/int4fp8.h"
#include "wlib/sm90/tensor_map.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::int4fp8 {

// kSlabs: slabs of 64 rows per consumer warpgroup.
template <int kTokens_, int kSlabs_, int kGroups_, int kStages_ = (kSlabs_ == 2 ? 5 : 6)>
struct CooperativeConfig {
  static constexpr int kTokens = kTokens_;
  static constexpr int kSlabs = kSlabs_;
  static constexpr int kGroups = kGroups_;
  static constexpr bool kZeros = false;
  static constexpr int kStages = kStages_;
  static constexpr int kConsumers = 2;
  static constexpr int kWeightTiles = kConsumers * kSlabs;
  static constexpr int kRows = kWeightTiles * int4::kTileRows;
  using Wgmma = typename sm90::WgmmaE4M3<kTokens>::Rs;
  static constexpr int kRegs = sm90::kAccumulators<Wgmma>;

  static constexpr int kThreads = (kConsumers + 1) * sm90::kWarpgroupThreads;
  static constexpr int kProducerRegs = 24;
  static constexpr int kConsumerRegs = sm90::consumer_registers(kConsumers, kProducerRegs);
  static constexpr int kTileBytes = int4::Layout{kGroups, false}.tile_bytes();
  static constexpr int kActivationBytes = kTokens * int4::kTileColumns;
  static constexpr uint32_t kStageBytes = kWeightTiles * kTileBytes + kActivationBytes;
  static constexpr int kSteps = 4 / kGroups;  // k steps of 32 columns per group
};

constexpr float kCodeScale = 512;  // codes arrive in units of 2^-9
constexpr int kBandBlocks = 16;    // token blocks per band of tiles

struct CooperativeParams {
  sm90::TensorMap x;      // [m, k] E4M3, box kTokens x 128, 128-byte swizzle; zeros beyond m and k
  const uint8_t* weight;  // packed, see layout/int4_tile.h
  const float* x_scale;   // [m]
  const void* bias;       // [n] or null
  void* y;                // [m, n]
  int m, n, k_tiles;
  int row_blocks, row_tiles, token_blocks;
  int tiles;  // row_tiles x token_blocks
  FloatType bias_type, out_type;
};

// False if the driver refuses the tensor map of x.
template <class C>
bool make_cooperative_params(const GemmParams& g, CooperativeParams* p) {
  *p = {};
  p->weight = g.weight;
  p->x_scale = g.x_scale;
  p->bias = g.bias;
  p->y = g.y;
  p->m = int(g.m);
  p->n = int(g.n);
  p->k_tiles = int(int4::ceil_div(g.k, int4::kTileColumns));
  p->row_blocks = int(int4::ceil_div(g.n, int4::kTileRows));
  p->row_tiles = int(int4::ceil_div(g.n, C::kRows));
  p->token_blocks = int(int4::ceil_div(g.m, C::kTokens));
  p->tiles = p->row_tiles * p->token_blocks;
  p->bias_type = g.bias_type;
  p->out_type = g.out_type;
  if (p->k_tiles == 0) return true;  // x is never read
  return sm90::make_tensor_map(&p->x, {g.x, uint64_t(g.m), uint64_t(g.k), uint64_t(g.x_stride),
                                       C::kTokens, int4::kTileColumns, 1});
}

}  // namespace wlib::int4fp8

// The decode kernel's tiles and parameters, and how the parameters follow from an op's.
#pragma once

#include "wlib/layout/int4_tile.h"
#include "wlib/params/int4fp8.h"
#include "wlib/sm90/tensor_map.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::int4fp8 {

// kStages per consumer warpgroup; the product keeps about 125 KB in flight.
template <int kTokens_, int kGroups_, bool kZeros_, int kConsumers_ = (kTokens_ <= 16 ? 4 : 2),
          int kStages_ = (kTokens_ == 8    ? 6
                          : kTokens_ == 32 ? 8
                                           : 5)>
struct DecodeConfig {
  static constexpr int kTokens = kTokens_;        // token tile: 8, 16, 32 or 64
  static constexpr int kGroups = kGroups_;        // scale groups per k tile: 1, 2 or 4
  static constexpr bool kZeros = kZeros_;         // zero points
  static constexpr int kConsumers = kConsumers_;  // warpgroups splitting the CTA's share of K
  static constexpr int kStages = kStages_;
  using Wgmma = typename sm90::WgmmaE4M3<kTokens>::Rs;
  using WgmmaOnes = typename sm90::WgmmaE4M3<kTokens>::Ss;
  static constexpr int kRegs = sm90::kAccumulators<Wgmma>;

  static constexpr int kThreads = (kConsumers + 1) * sm90::kWarpgroupThreads;
  static constexpr int kProducerRegs = 32;
  static constexpr int kConsumerRegs = sm90::consumer_registers(kConsumers, kProducerRegs);
  static constexpr int kTileBytes = int4::Layout{kGroups, kZeros}.tile_bytes();
  static constexpr int kActivationBytes = kTokens * int4::kTileColumns;
  static constexpr int kSteps = 4 / kGroups;  // k steps of 32 columns per group
};

struct DecodeParams {
  sm90::TensorMap x;      // [m, k] E4M3, box kTokens x 128, 128-byte swizzle; zeros beyond m and k
  const uint8_t* weight;  // packed, see layout/int4_tile.h
  const float* x_scale;   // [m]
  const void* bias;       // [n] or null
  void* y;                // [m, n]
  int m, n, k_tiles;
  int token_blocks;  // items: row_blocks x token_blocks, tokens fastest, so that neighbours share
                     // weights
  int items;
  int split_log2;  // CTAs per cluster
  FloatType bias_type, out_type;
};

// False if the driver refuses the tensor map of x.
template <class C>
bool make_decode_params(const GemmParams& g, int split_log2, DecodeParams* p) {
  *p = {};
  p->weight = g.weight;
  p->x_scale = g.x_scale;
  p->bias = g.bias;
  p->y = g.y;
  p->m = int(g.m);
  p->n = int(g.n);
  p->k_tiles = int(int4::ceil_div(g.k, int4::kTileColumns));
  p->token_blocks = int(int4::ceil_div(g.m, C::kTokens));
  p->items = int(int4::ceil_div(g.n, int4::kTileRows)) * p->token_blocks;
  p->split_log2 = split_log2;
  p->bias_type = g.bias_type;
  p->out_type = g.out_type;
  if (p->k_tiles == 0) return true;  // x is never read
  return sm90::make_tensor_map(&p->x, {g.x, uint64_t(g.m), uint64_t(g.k), uint64_t(g.x_stride),
                                       C::kTokens, int4::kTileColumns, 1});
}

}  // namespace wlib::int4fp8

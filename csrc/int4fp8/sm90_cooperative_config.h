// The cooperative kernel's tiles and parameters, and how the parameters follow from an op's.
#pragma once

#include "int4fp8/sm90_params.h"
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

struct CooperativeParams : KernelParams {
  int row_tiles;
  int tiles;  // row_tiles x token_blocks
};

template <class C>
bool make_cooperative_params(const GemmParams& g, CooperativeParams* p) {
  *p = {};
  const bool ok = make_kernel_params(g, C::kTokens, p);
  p->row_tiles = int(int4::ceil_div(g.n, C::kRows));
  p->tiles = p->row_tiles * p->token_blocks;
  return ok;
}

}  // namespace wlib::int4fp8

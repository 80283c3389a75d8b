// The cooperative kernel's tiles and parameters, and how the parameters follow from an op's.
#pragma once

#include "int4fp8/sm90_fragments.h"
#include "int4fp8/sm90_params.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::int4fp8 {

constexpr int kCooperativeConsumers = 2;
constexpr int kStagingPitch = int4::kTileRows + 4;  // floats; the 4 spread a store over all banks
constexpr int kStagingTokens = 64;

// What a stage of the ring holds.
struct StageBytes {
  int weights, x, x_sums;

  constexpr StageBytes(int tokens, int slabs, int groups, bool zeros)
      : weights(kCooperativeConsumers * slabs * int4::Layout{groups, zeros}.tile_bytes()),
        x(tokens * int4::kTileColumns),
        x_sums(zeros ? groups * tokens * int(sizeof(float)) : 0) {}
  constexpr int total() const { return weights + x + x_sums; }
};

// As many stages as fit beside the staging of the outputs, at most six.
constexpr int cooperative_stages(StageBytes stage) {
  constexpr int kStaging = kCooperativeConsumers * kStagingTokens * kStagingPitch * sizeof(float);
  constexpr int kTable = 2 * (kMaxExperts + 1) * sizeof(int);
  constexpr int kBytes = 227 * 1024 - kStaging - kTable - 1024;  // barriers and alignment
  return kBytes / stage.total() < 6 ? kBytes / stage.total() : 6;
}

// kSlabs: slabs of 64 rows per consumer warpgroup.
template <int kTokens_, int kSlabs_, int kGroups_, bool kZeros_,
          int kStages_ = cooperative_stages({kTokens_, kSlabs_, kGroups_, kZeros_})>
struct CooperativeConfig {
  static constexpr int kTokens = kTokens_;
  static constexpr int kSlabs = kSlabs_;
  static constexpr int kGroups = kGroups_;
  static constexpr bool kZeros = kZeros_;
  static constexpr Fragment kFragment = kZeros ? Fragment::kOdd : Fragment::kCode;
  static constexpr float kUnit = kZeros ? kOddCodeScale : 2 * kOddCodeScale;  // of the sums
  static constexpr int kStages = kStages_;
  static constexpr int kConsumers = kCooperativeConsumers;
  static constexpr int kWeightTiles = kConsumers * kSlabs;
  static constexpr int kRows = kWeightTiles * int4::kTileRows;
  using Wgmma = typename sm90::WgmmaE4M3<kTokens>::Rs;
  static constexpr int kRegs = sm90::kAccumulators<Wgmma>;

  static constexpr int kThreads = (kConsumers + 1) * sm90::kWarpgroupThreads;
  static constexpr int kProducerRegs = 24;
  static constexpr int kConsumerRegs = sm90::consumer_registers(kConsumers, kProducerRegs);
  static constexpr int kTileBytes = int4::Layout{kGroups, kZeros}.tile_bytes();
  static constexpr StageBytes kStage{kTokens, kSlabs, kGroups, kZeros};
  static constexpr int kSteps = 4 / kGroups;  // k steps of 32 columns per group
};

constexpr int kBandBlocks = 16;  // token blocks per band of tiles

struct CooperativeParams : KernelParams {
  sm90::TensorMap x_sums;  // [groups, m] float, box groups of a k tile x tokens; if there are zeros
  int row_tiles;           // of a weight
};

template <class C>
bool make_cooperative_params(const GemmParams& g, CooperativeParams* p) {
  *p = {};
  if (!make_kernel_params(g, C::kTokens, p)) return false;
  p->row_tiles = int(int4::ceil_div(g.n, C::kRows));
  if (!C::kZeros || p->k_tiles == 0) return true;
  const int64_t groups = int4::ceil_div(g.k, int4::kTileColumns / C::kGroups);
  return sm90::make_tensor_map(
      &p->x_sums, {g.x_sums, uint64_t(groups), uint64_t(g.m), uint64_t(g.x_sums_pitch) * 4,
                   C::kGroups, C::kTokens, sizeof(float), /*swizzle=*/false});
}

}  // namespace wlib::int4fp8

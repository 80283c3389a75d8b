// The cooperative kernel's tiles and parameters, and how the parameters follow from an op's.
#pragma once

#include "int4fp8/sm90_fragments.h"
#include "int4fp8/sm90_params.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::int4fp8 {

constexpr int kCooperativeConsumers = 2;
constexpr int kStagingPitch = int4::kTileRows + 4;  // floats; the 4 spread a store over all banks

// What a stage of the ring holds.
struct StageBytes {
  int weights, x, x_sums;

  constexpr StageBytes(int tokens, int rows, int groups, bool zeros)
      : weights(rows / int4::kTileRows * int4::Layout{groups, zeros}.tile_bytes()),
        x(tokens * int4::kTileColumns),
        x_sums(zeros ? groups * tokens * int(sizeof(float)) : 0) {}
  constexpr int total() const { return weights + x + x_sums; }
};

// As many stages as fit beside the staging of the outputs, at most six.
constexpr int cooperative_stages(int tokens, StageBytes stage) {
  const int staging = kCooperativeConsumers * tokens / 2 * kStagingPitch * int(sizeof(float));
  constexpr int kTable = 2 * (kMaxExperts + 1) * sizeof(int);
  const int bytes = 227 * 1024 - staging - kTable - 1024;  // barriers and alignment
  return bytes / stage.total() < 6 ? bytes / stage.total() : 6;
}

// A tile of y has kRows rows of the weight. 128: each consumer warpgroup takes whole tiles, in turn
// with the other one (ping-pong). 256: the two share a tile, and the CTAs of a pair, which have the
// same tokens, share their activations.
template <int kTokens_, int kRows_, int kGroups_, bool kZeros_,
          int kStages_ = cooperative_stages(kTokens_, {kTokens_, kRows_, kGroups_, kZeros_})>
struct CooperativeConfig {
  static constexpr int kTokens = kTokens_;
  static constexpr int kRows = kRows_;
  static constexpr int kGroups = kGroups_;
  static constexpr bool kZeros = kZeros_;
  static constexpr int kStages = kStages_;
  static constexpr Fragment kFragment = kZeros ? Fragment::kOdd : Fragment::kCode;
  static constexpr float kUnit = kZeros ? kOddCodeScale : 2 * kOddCodeScale;  // of the sums
  static constexpr int kConsumers = kCooperativeConsumers;
  static constexpr int kSlabs = 2;  // of 64 rows, per consumer and tile
  static constexpr bool kPingPong = kRows == kSlabs * int4::kTileRows;
  static constexpr int kTurns = kPingPong ? 2 : 1;  // tiles that a CTA has under way
  static constexpr int kCtas = kPingPong ? 1 : 2;   // per cluster
  static_assert(kRows == (kPingPong ? 1 : kConsumers) * kSlabs * int4::kTileRows);
  static_assert(kStages > 1, "a stage is released after the next one is waited for");
  static constexpr int kWeightTiles = kRows / int4::kTileRows;
  // A slab is multiplied with one half of the tokens after the other, so that the products of one
  // are scaled while those of the other are made.
  static constexpr int kHalfTokens = kTokens / 2;
  static constexpr bool kAhead = !kZeros;  // weights are unpacked one slab ahead
  using Wgmma = typename sm90::WgmmaE4M3<kHalfTokens>::Rs;
  static constexpr int kRegs = sm90::kAccumulators<Wgmma>;  // of a slab and half of the tokens
  static constexpr int kReaders = (kPingPong ? 1 : kConsumers * kCtas) * 4;  // warps per stage

  static constexpr int kThreads = (kConsumers + 1) * sm90::kWarpgroupThreads;
  static constexpr int kProducerRegs = 24;
  static constexpr int kConsumerRegs = sm90::consumer_registers(kConsumers, kProducerRegs);
  static constexpr int kTileBytes = int4::Layout{kGroups, kZeros}.tile_bytes();
  static constexpr StageBytes kStage{kTokens, kRows, kGroups, kZeros};
  static constexpr int kSteps = 4 / kGroups;  // k steps of 32 columns per group
};

constexpr int kBandBlocks = 16;  // token blocks per band of tiles

struct CooperativeParams : KernelParams {
  sm90::TensorMap x_sums;  // [groups, m] float, box groups of a k tile x tokens; if there are zeros
  int row_tiles;           // of a weight; of a pair of CTAs counted once
};

template <class C>
bool make_cooperative_params(const GemmParams& g, CooperativeParams* p) {
  *p = {};
  if (!make_kernel_params(g, C::kTokens, p, C::kCtas)) return false;
  p->row_tiles = int(int4::ceil_div(g.n, C::kRows * C::kCtas));
  if (!C::kZeros || p->k_tiles == 0) return true;
  const int64_t groups = int4::ceil_div(g.k, int4::kTileColumns / C::kGroups);
  return sm90::make_tensor_map(
      &p->x_sums, {g.x_sums, uint64_t(groups), uint64_t(g.m), uint64_t(g.x_sums_pitch) * 4,
                   C::kGroups, C::kTokens, sizeof(float), /*swizzle=*/false});
}

}  // namespace wlib::int4fp8

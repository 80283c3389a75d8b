// The decode kernel's tiles and parameters, and how the parameters follow from an op's.
#pragma once

#include "int4fp8/decode_plan.h"
#include "int4fp8/sm90_params.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::int4fp8 {

template <int kTokens_, int kGroups_, bool kZeros_, int kConsumers_ = decode_consumers(kTokens_),
          int kStages_ = decode_stages(kTokens_)>
struct DecodeConfig {
  static constexpr int kTokens = kTokens_;        // token tile: 8, 16, 32 or 64
  static constexpr int kGroups = kGroups_;        // scale groups per k tile: 1, 2 or 4
  static constexpr bool kZeros = kZeros_;         // zero points
  static constexpr int kConsumers = kConsumers_;  // warpgroups splitting the CTA's share of K
  static constexpr int kStages = kStages_;        // of each one's ring
  using Wgmma = typename sm90::WgmmaE4M3<kTokens>::Rs;
  using WgmmaOnes = typename sm90::WgmmaE4M3<kTokens>::Ss;
  static constexpr int kRegs = sm90::kAccumulators<Wgmma>;

  static constexpr int kThreads = (kConsumers + 1) * sm90::kWarpgroupThreads;
  static constexpr int kProducerRegs = 40;
  static constexpr int kConsumerRegs = sm90::consumer_registers(kConsumers, kProducerRegs);
  static constexpr int kTileBytes = int4::Layout{kGroups, kZeros}.tile_bytes();
  static constexpr int kActivationBytes = kTokens * int4::kTileColumns;
  static constexpr int kSteps = 4 / kGroups;  // k steps of 32 columns per group
};

struct DecodeParams : KernelParams {
  int split_log2;  // CTAs per cluster
  // All items take the same activations, and each tile of them stays in a stage of its own.
  bool x_resident;
  bool prefetch_weight;  // before the launch before this one has finished
};

template <class C>
bool make_decode_params(const GemmParams& g, int split_log2, DecodeParams* p) {
  *p = {};
  const bool ok = make_kernel_params(g, C::kTokens, p);
  p->split_log2 = split_log2;
  p->x_resident = p->token_blocks == 1 &&
                  activations_fit(p->k_tiles, 1 << split_log2, C::kConsumers, C::kStages);
  p->prefetch_weight = g.prefetch_weight;
  return ok;
}

}  // namespace wlib::int4fp8

// y[M, N] = (x[M, K] in E4M3) * dequant(INT4 w[N, K])^T for many tokens (sm_90a; also runs in the
// simulator).
//
// A persistent CTA takes one tile of y after the other: kRows rows of w (wgmma's M) for kTokens
// tokens (wgmma's N). A producer thread streams {weight tiles, activation tile} of 128 columns
// through a ring; two consumer warpgroups share the activations and own kSlabs slabs of 64 rows
// each. While one warpgroup unpacks weights and applies group scales, the other one's wgmmas run.
// The FP32 scaling of every tile's products is also the promotion that FP8 accumulators need. With
// zero points, the fragments are the odd numbers 2q + 1, and the sums of x over each group take off
// what is too much: 2 (q - z) = (2q + 1) - (1 + 2z).
#pragma once

#include "int4fp8/sm90_cooperative_config.h"
#include "int4fp8/sm90_fragments.h"
#include "int4fp8/sm90_store.h"
#include "int4fp8/sm90_tiles.h"
#include "wlib/sm90/copy.h"
#include "wlib/sm90/ring.h"
#include "wlib/sm90/sync.h"

namespace wlib::int4fp8 {

template <class C>
struct CooperativeSmem {
  alignas(1024) uint8_t x[C::kStages][C::kStage.x];
  alignas(128) uint8_t weights[C::kStages][C::kWeightTiles][C::kTileBytes];
  alignas(128) float x_sums[C::kZeros ? C::kStages : 1][C::kGroups][C::kTokens];
  // Outputs of one warpgroup on their way from accumulators to rows of y.
  alignas(128) float staging[C::kConsumers][kStagingTokens][kStagingPitch];
  ExpertTable experts;
  sm90::Ring<C::kStages> ring;
};

template <class C>
WLIB_DEVICE int tile_count(const CooperativeParams& p, const CooperativeSmem<C>& s) {
  return tile_count(p, s.experts, p.row_tiles);
}
template <class C>
WLIB_DEVICE TokenTile tile_at(const CooperativeParams& p, const CooperativeSmem<C>& s, int index) {
  return {p, s.experts, index, C::kTokens, p.row_tiles, kBandBlocks};
}

template <class C>
WLIB_DEVICE void produce(CooperativeSmem<C>& s, const CooperativeParams& p) {
  constexpr int4::Layout kLayout{C::kGroups, C::kZeros};
  sm90::RingCursor<C::kStages> at;
  for (int i = sm90::block_index_x(); i < tile_count(p, s); i += sm90::grid_size_x()) {
    const TokenTile tile = tile_at(p, s, i);
    const int first_block = tile.row_tile * C::kWeightTiles, more = p.row_blocks - 1 - first_block;
    const uint8_t* tiles = packed_rows(p, kLayout, tile.expert, first_block);
    for (int k = 0; k < p.k_tiles; ++k, tiles += C::kTileBytes, at.advance()) {
      s.ring.wait_empty(at);
      uint64_t& full = s.ring.expect(at, C::kStage.total());
      WLIB_NO_UNROLL  // the addresses of all would not fit into the producer's registers
          for (int w = 0; w < C::kWeightTiles; ++w) {
        // Beyond the last row block, the last one again: its outputs are not stored.
        const uint8_t* source = tiles + (w < more ? w : more) * kLayout.block_bytes(p.k_tiles);
        sm90::bulk_load(s.weights[at.stage][w], source, C::kTileBytes, full);
      }
      sm90::tensor_load_2d(s.x[at.stage], p.x, k * int4::kTileColumns, tile.first_token, full);
      if constexpr (C::kZeros) {
        sm90::tensor_load_2d(s.x_sums[at.stage], p.x_sums, tile.first_token, k * C::kGroups, full);
      }
    }
  }
}

// sum -= scale * (1 + 2z) * sum(x), in units of 2^-9, for all slabs of the warpgroup, whose tiles
// start at `tiles`. The sums of x are read once for all of them.
template <class C>
WLIB_DEVICE void subtract_zero_points(const uint8_t* tiles, const float (*x_sums)[C::kTokens],
                                      float (&sum)[C::kSlabs][C::kRegs]) {
  const int first_column = sm90::accumulator_column(sm90::thread_in_warpgroup(), 0);
  WLIB_NO_UNROLL  // it would keep the sums of several groups in registers
      for (int group = 0; group < C::kGroups; ++group) {
    float factor[C::kSlabs][2];
    WLIB_UNROLL
    for (int slab = 0; slab < C::kSlabs; ++slab) {
      const RowPair<C> rows(tiles + slab * C::kTileBytes, group);
      for (int r = 0; r < 2; ++r) factor[slab][r] = rows.scale[r] * rows.zero[r] * (-1 / 512.0f);
    }
    WLIB_UNROLL
    for (int v = 0; v < C::kRegs; v += 4) {  // two neighbouring tokens of both rows
      const float2 s = *reinterpret_cast<const float2*>(&x_sums[group][first_column + v / 4 * 8]);
      WLIB_UNROLL
      for (int slab = 0; slab < C::kSlabs; ++slab) {
        WLIB_UNROLL
        for (int i = 0; i < 4; ++i) sum[slab][v + i] += factor[slab][i / 2] * (i % 2 ? s.y : s.x);
      }
    }
  }
}

// sum += scale * (fragments * x) for the 64 rows of one weight tile.
template <class C>
WLIB_DEVICE void multiply_slab(const uint8_t* tile, uint64_t x, float (&sum)[C::kRegs]) {
  uint32_t a[4][4];
  float products[C::kRegs];
  load_fragments<C::kFragment>(tile, a);
  WLIB_UNROLL
  for (int group = 0; group < C::kGroups; ++group) {
    const int first = group * C::kSteps;
    sm90::wgmma_fence();
    WLIB_UNROLL
    for (int step = first; step < first + C::kSteps; ++step) {
      sm90::wgmma<typename C::Wgmma>(products, a[step], x + step * sm90::kDescriptorKStep,
                                     step != first);
    }
    sm90::wgmma_commit();
    const RowPair<C> rows(tile, group);  // while the tensor cores work
    sm90::wgmma_wait<0>(products);
    WLIB_UNROLL
    for (int v = 0; v < C::kRegs; ++v) sum[v] += rows.scale[v / 2 % 2] * products[v];
  }
}

// Stores one slab's outputs, kStagingTokens at a time: a warp takes the 64 rows of a token.
template <class C>
WLIB_DEVICE void store_slab(CooperativeSmem<C>& s, const CooperativeParams& p, int consumer,
                            const TokenTile& tile, int block, const float (&sum)[C::kRegs]) {
  constexpr int kRegsPerPass = kStagingTokens / 8 * 4;
  const int t = sm90::thread_in_warpgroup(), row = sm90::lane_index() * 2;
  const int n = block * int4::kTileRows + row;
  const bool exists = n < p.n;
  float2 channel_scale = {0, 0}, bias = {0, 0};
  if (exists) {
    constexpr int4::Layout kLayout{C::kGroups, C::kZeros};
    const uint8_t* scales =
        packed_rows(p, kLayout, tile.expert, block) + int64_t(p.k_tiles) * C::kTileBytes;
    channel_scale = reinterpret_cast<const float2*>(scales)[row / 2];
    bias = load_bias(p, tile.expert, n);
  }
  auto& staging = s.staging[consumer];
  WLIB_UNROLL
  for (int pass = 0; pass < C::kTokens / kStagingTokens; ++pass) {
    sm90::barrier_sync(1 + consumer, sm90::kWarpgroupThreads);  // the pass before has been read
    WLIB_UNROLL
    for (int v = 0; v < kRegsPerPass; ++v) {
      staging[sm90::accumulator_column(t, v)][sm90::accumulator_row(t, v)] =
          sum[pass * kRegsPerPass + v];
    }
    sm90::barrier_sync(1 + consumer, sm90::kWarpgroupThreads);
    for (int token = t / sm90::kWarpThreads; token < kStagingTokens; token += 4) {
      const int m = tile.first_token + pass * kStagingTokens + token;
      if (m >= tile.end_token || !exists) break;
      const float scale = p.x_scale[m] * C::kUnit;
      const float2 residual = load_residual(p, m, n);
      const float2 value = *reinterpret_cast<const float2*>(&staging[token][row]);
      store_pair(p, m, n, value.x * (scale * channel_scale.x) + bias.x,
                 value.y * (scale * channel_scale.y) + bias.y, residual);
    }
  }
}

template <class C>
WLIB_DEVICE void consume(CooperativeSmem<C>& s, const CooperativeParams& p, int consumer) {
  sm90::RingCursor<C::kStages> at;
  for (int i = sm90::block_index_x(); i < tile_count(p, s); i += sm90::grid_size_x()) {
    float sum[C::kSlabs][C::kRegs] = {};
    for (int k = 0; k < p.k_tiles; ++k, at.advance()) {
      s.ring.wait_full(at);
      const uint64_t x = sm90::swizzled_tile_descriptor(s.x[at.stage]);
      const uint8_t* tiles = s.weights[at.stage][consumer * C::kSlabs];
      if constexpr (C::kZeros) subtract_zero_points<C>(tiles, s.x_sums[at.stage], sum);
      WLIB_UNROLL
      for (int slab = 0; slab < C::kSlabs; ++slab)
        multiply_slab<C>(tiles + slab * C::kTileBytes, x, sum[slab]);
      s.ring.release(at);
    }
    const TokenTile tile = tile_at(p, s, i);  // not sooner: registers
    WLIB_UNROLL
    for (int slab = 0; slab < C::kSlabs; ++slab) {
      const int block = tile.row_tile * C::kWeightTiles + consumer * C::kSlabs + slab;
      store_slab<C>(s, p, consumer, tile, block, sum[slab]);
    }
  }
}

template <class C>
WLIB_KERNEL(C::kThreads)
cooperative_kernel(WLIB_GRID_CONSTANT CooperativeParams p) {
  auto& s = sm90::dynamic_smem<CooperativeSmem<C>>();
  if (sm90::thread_index() == 0) s.ring.init(/*readers=*/C::kConsumers * 4);
  if (sm90::warp_index() == 1 && is_grouped(p)) count_blocks(p, C::kTokens, s.experts);
  sm90::block_sync();
  const int group = sm90::warpgroup_index();
  if (group == C::kConsumers) {
    sm90::release_registers<C::kProducerRegs>();
    if (sm90::warp_index() % 4 == 0 && sm90::elect()) produce<C>(s, p);
  } else {
    sm90::acquire_registers<C::kConsumerRegs>();
    consume<C>(s, p, group);
  }
}

}  // namespace wlib::int4fp8

// y[M, N] = (x[M, K] in E4M3) * dequant(INT4 w[N, K])^T for many tokens (sm_90a; also runs in the
// simulator).
//
// A persistent CTA takes one tile of y after the other: kRows rows of w (wgmma's M) for kTokens
// tokens (wgmma's N). A producer thread streams {weight tiles, activation tile} of 128 columns
// through a ring to two consumer warpgroups, which have two slabs of 64 rows each:
//   128 rows   a tile each, in turn: while one stores its outputs, the other one multiplies
//   256 rows   of one tile; two CTAs, 512 rows, form a cluster: each fetches half of the tokens'
//              activations, for both of them
//
// Within a warpgroup, too, everything runs behind wgmmas. A slab is multiplied with one half of the
// tokens after the other, so that the products of one half get their group scales while those of
// the other half are made, and weights are unpacked one slab ahead (not with zero points, whose
// sums take the registers). The FP32 scaling is also the promotion that FP8 accumulators need. With
// zero points, the fragments are the odd numbers 2q + 1, and the sums of x over each group take off
// what is too much: 2 (q - z) = (2q + 1) - (1 + 2z).
#pragma once

#include "int4fp8/sm90_cooperative_config.h"
#include "int4fp8/sm90_fragments.h"
#include "int4fp8/sm90_store.h"
#include "int4fp8/sm90_tiles.h"
#include "wlib/sm90/cluster.h"
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
  alignas(128) float staging[C::kConsumers][C::kHalfTokens][kStagingPitch];
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

// Tiles of this CTA: the cluster's one after the other, its rank chooses the rows.
template <class C>
WLIB_DEVICE int first_tile() {
  return sm90::block_index_x() / C::kCtas;
}
template <class C>
WLIB_DEVICE int tile_stride() {
  return sm90::grid_size_x() / C::kCtas;
}
template <class C>
WLIB_DEVICE int first_row_block(const TokenTile& tile, int rank) {
  return (tile.row_tile * C::kCtas + rank) * C::kWeightTiles;
}

// The activations of tile `k`, of which the CTAs of a cluster bring each other equal shares.
template <class C>
WLIB_DEVICE void load_activations(CooperativeSmem<C>& s, const CooperativeParams& p, int stage,
                                  int k, int first_token, int rank, uint64_t& full) {
  constexpr uint16_t kAll = (1 << C::kCtas) - 1;
  const int column = k * int4::kTileColumns;
  uint8_t* share = s.x[stage] + rank * (C::kStage.x / C::kCtas);
  const int token = first_token + rank * (C::kTokens / C::kCtas);
  if constexpr (C::kCtas == 1)
    sm90::tensor_load_2d(share, p.x, column, token, full);
  else
    sm90::tensor_load_2d_multicast(share, p.x, column, token, full, kAll);
  if constexpr (C::kZeros)
    sm90::tensor_load_2d(s.x_sums[stage], p.x_sums, first_token, k * C::kGroups, full);
}

template <class C>
WLIB_DEVICE void produce(CooperativeSmem<C>& s, const CooperativeParams& p, int rank) {
  constexpr int4::Layout kLayout{C::kGroups, C::kZeros};
  sm90::RingCursor<C::kStages> at;
  for (int i = first_tile<C>(); i < tile_count(p, s); i += tile_stride<C>()) {
    const TokenTile tile = tile_at(p, s, i);
    const int first_block = first_row_block<C>(tile, rank), more = p.row_blocks - 1 - first_block;
    const uint8_t* tiles = packed_rows(p, kLayout, tile.expert, first_block);
    for (int k = 0; k < p.k_tiles; ++k, tiles += C::kTileBytes, at.advance()) {
      s.ring.template wait_empty<C::kCtas>(at);
      uint64_t& full = s.ring.expect(at, C::kStage.total());
      WLIB_NO_UNROLL  // the addresses of all would not fit into the producer's registers
          for (int w = 0; w < C::kWeightTiles; ++w) {
        // Beyond the last row block, the last one again: its outputs are not stored.
        const uint8_t* source = tiles + (w < more ? w : more) * kLayout.block_bytes(p.k_tiles);
        sm90::bulk_load(s.weights[at.stage][w], source, C::kTileBytes, full);
      }
      load_activations<C>(s, p, at.stage, k, tile.first_token, rank, full);
    }
  }
}

// sum -= scale * (1 + 2z) * sum(x), in units of 2^-9, for all slabs of the warpgroup, whose tiles
// start at `tiles`. The sums of x are read once for all of them.
template <class C>
WLIB_DEVICE void subtract_zero_points(const uint8_t* tiles, const float (*x_sums)[C::kTokens],
                                      float (&sum)[C::kSlabs][2][C::kRegs]) {
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
    for (int v = 0; v < 2 * C::kRegs; v += 4) {  // two neighbouring tokens of both rows
      const float2 s = *reinterpret_cast<const float2*>(&x_sums[group][first_column + v / 4 * 8]);
      WLIB_UNROLL
      for (int slab = 0; slab < C::kSlabs; ++slab) {
        auto& half = sum[slab][v / C::kRegs];
        WLIB_UNROLL
        for (int i = 0; i < 4; ++i)
          half[v % C::kRegs + i] += factor[slab][i / 2] * (i % 2 ? s.y : s.x);
      }
    }
  }
}

// What a consumer warpgroup has in registers while it multiplies.
template <class C>
struct Multiplier {
  float sum[C::kSlabs][2][C::kRegs];  // by half of the tokens
  float products[2][C::kRegs];
  uint32_t a[C::kAhead ? C::kSlabs : 1][4][4];
  float scale[2];  // of the rows of the products that were issued last
};

// Issues the wgmmas of one group for half of the tokens.
template <class C>
WLIB_DEVICE void multiply_group(const uint32_t (&a)[4][4], uint64_t x, int group,
                                float (&products)[C::kRegs]) {
  const int first = group * C::kSteps;
  sm90::wgmma_fence();
  WLIB_UNROLL
  for (int step = first; step < first + C::kSteps; ++step) {
    sm90::wgmma<typename C::Wgmma>(products, a[step], x + step * sm90::kDescriptorKStep,
                                   step != first);
  }
  sm90::wgmma_commit();
}

// sum += scale * products, which are complete once only kPending groups of wgmmas are in flight.
template <int kPending, int kRegs>
WLIB_DEVICE void add_scaled(const float (&scale)[2], float (&products)[kRegs],
                            float (&sum)[kRegs]) {
  sm90::wgmma_wait<kPending>(products);
  WLIB_UNROLL
  for (int v = 0; v < kRegs; ++v) sum[v] += scale[v / 2 % 2] * products[v];
}

// Decodes what follows slab `slab` of the stage: the next slab, or the first one of the next stage,
// if there is one.
template <class C>
WLIB_DEVICE void decode_next(CooperativeSmem<C>& s, int slab, int first_weight_tile, bool more,
                             sm90::RingCursor<C::kStages>& at, Multiplier<C>& m) {
  if (slab + 1 < C::kSlabs) {
    const uint8_t* tile = s.weights[at.stage][first_weight_tile + slab + 1];
    load_fragments<C::kFragment>(tile, m.a[slab + 1]);
  } else if (more) {
    sm90::RingCursor<C::kStages> next = at;
    next.advance();
    s.ring.wait_full(next);
    load_fragments<C::kFragment>(s.weights[next.stage][first_weight_tile], m.a[0]);
  }
}

// All k tiles of a tile of y. Two groups of wgmmas are in flight but for the end of a k tile: the
// compiler does not follow products that are read in the next pass of a loop.
template <class C>
WLIB_DEVICE void multiply(CooperativeSmem<C>& s, int k_tiles, int first_weight_tile,
                          sm90::RingCursor<C::kStages>& at, Multiplier<C>& m) {
  constexpr uint64_t kHalf = C::kHalfTokens * int4::kTileColumns >> 4;
  s.ring.wait_full(at);
  if (C::kAhead) load_fragments<C::kFragment>(s.weights[at.stage][first_weight_tile], m.a[0]);
  for (int k = 0; k < k_tiles; ++k, at.advance()) {
    if (!C::kAhead && k > 0) s.ring.wait_full(at);
    const uint64_t x = sm90::swizzled_tile_descriptor(s.x[at.stage]);
    const uint8_t* tiles = s.weights[at.stage][first_weight_tile];
    if constexpr (C::kZeros) subtract_zero_points<C>(tiles, s.x_sums[at.stage], m.sum);
    WLIB_UNROLL
    for (int i = 0; i < C::kSlabs * C::kGroups; ++i) {
      const int slab = i / C::kGroups, group = i % C::kGroups;
      const bool last = group == C::kGroups - 1;
      const uint8_t* tile = tiles + slab * C::kTileBytes;
      auto& a = m.a[C::kAhead ? slab : 0];
      if (!C::kAhead && group == 0) load_fragments<C::kFragment>(tile, a);
      multiply_group<C>(a, x, group, m.products[0]);
      if (i > 0 && (C::kAhead || group > 0))
        add_scaled<1>(m.scale, m.products[1], m.sum[(i - 1) / C::kGroups][1]);
      const RowPair<C> rows(tile, group);
      for (int r = 0; r < 2; ++r) m.scale[r] = rows.scale[r];
      multiply_group<C>(a, x + kHalf, group, m.products[1]);
      if (C::kAhead && last) decode_next<C>(s, slab, first_weight_tile, k + 1 < k_tiles, at, m);
      add_scaled<1>(m.scale, m.products[0], m.sum[slab][0]);
      if (last && (!C::kAhead || slab == C::kSlabs - 1))
        add_scaled<0>(m.scale, m.products[1], m.sum[slab][1]);
    }
    s.ring.template release<C::kCtas>(at);
  }
}

// Stores one slab's outputs, half of the tokens at a time: a warp takes the 64 rows of a token.
template <class C>
WLIB_DEVICE void store_slab(CooperativeSmem<C>& s, const CooperativeParams& p, int consumer,
                            const TokenTile& tile, int block, const float (&sum)[2][C::kRegs]) {
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
  for (int half = 0; half < 2; ++half) {
    sm90::barrier_sync(1 + consumer, sm90::kWarpgroupThreads);  // the half before has been read
    WLIB_UNROLL
    for (int v = 0; v < C::kRegs; ++v)
      staging[sm90::accumulator_column(t, v)][sm90::accumulator_row(t, v)] = sum[half][v];
    sm90::barrier_sync(1 + consumer, sm90::kWarpgroupThreads);
    for (int token = t / sm90::kWarpThreads; token < C::kHalfTokens; token += 4) {
      const int m = tile.first_token + half * C::kHalfTokens + token;
      if (m >= tile.end_token || !exists) break;
      const float scale = p.x_scale[m] * C::kUnit;
      const float2 residual = load_residual(p, m, n);
      const float2 value = *reinterpret_cast<const float2*>(&staging[token][row]);
      store_pair(p, m, n, value.x * (scale * channel_scale.x) + bias.x,
                 value.y * (scale * channel_scale.y) + bias.y, residual);
    }
  }
}

// Ping-pong: a CTA's tiles are multiplied in order, so a warpgroup starts after the other one has
// waited for the last stage of the tile before. All threads of both meet at a barrier per taker.
constexpr int kTurnBarrier = 1 + kCooperativeConsumers;  // behind those of the staging
template <class C>
WLIB_DEVICE void await_turn(int consumer) {
  sm90::barrier_sync(kTurnBarrier + consumer, C::kConsumers * sm90::kWarpgroupThreads);
}
template <class C>
WLIB_DEVICE void pass_turn(int consumer) {
  sm90::barrier_arrive(kTurnBarrier + 1 - consumer, C::kConsumers * sm90::kWarpgroupThreads);
}

template <class C>
WLIB_DEVICE void consume(CooperativeSmem<C>& s, const CooperativeParams& p, int consumer,
                         int rank) {
  const int turn = C::kPingPong ? consumer : 0, stride = tile_stride<C>();
  const int first_weight_tile = C::kPingPong ? 0 : consumer * C::kSlabs;
  sm90::RingCursor<C::kStages> at;
  at.skip(turn * p.k_tiles);
  for (int i = first_tile<C>() + turn * stride; i < tile_count(p, s); i += C::kTurns * stride) {
    Multiplier<C> m = {};
    if (C::kPingPong && i != first_tile<C>()) await_turn<C>(consumer);
    if (p.k_tiles > 0) multiply(s, p.k_tiles, first_weight_tile, at, m);
    if (C::kPingPong && i + stride < tile_count(p, s)) pass_turn<C>(consumer);
    at.skip((C::kTurns - 1) * p.k_tiles);
    const TokenTile tile = tile_at(p, s, i);  // not sooner: registers
    WLIB_UNROLL
    for (int slab = 0; slab < C::kSlabs; ++slab) {
      const int block = first_row_block<C>(tile, rank) + first_weight_tile + slab;
      store_slab<C>(s, p, consumer, tile, block, m.sum[slab]);
    }
  }
}

template <class C>
WLIB_KERNEL(C::kThreads)
cooperative_kernel(WLIB_GRID_CONSTANT CooperativeParams p) {
  auto& s = sm90::dynamic_smem<CooperativeSmem<C>>();
  if (sm90::thread_index() == 0) s.ring.init(C::kReaders);
  if (sm90::warp_index() == 1 && is_grouped(p)) count_blocks(p, C::kTokens, s.experts);
  if constexpr (C::kCtas == 1)
    sm90::block_sync();
  else
    sm90::cluster_sync();
  const int group = sm90::warpgroup_index();
  const int rank = C::kCtas == 1 ? 0 : sm90::warp_uniform(sm90::cluster_rank());
  if (group == C::kConsumers) {
    sm90::release_registers<C::kProducerRegs>();
    if (sm90::warp_index() % 4 == 0) {
      if (sm90::elect()) produce<C>(s, p, rank);
      sm90::warp_sync();
    }
  } else {
    sm90::acquire_registers<C::kConsumerRegs>();
    consume<C>(s, p, group, rank);
  }
  if constexpr (C::kCtas > 1) sm90::cluster_sync();  // the peer may still write and arrive here
}

}  // namespace wlib::int4fp8

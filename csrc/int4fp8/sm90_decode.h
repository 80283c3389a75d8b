// y[M, N] = (x[M, K] in E4M3) * dequant(INT4 w[N, K])^T for few tokens: reads every weight once
// (sm_90a; also runs in the simulator).
//
// A persistent cluster of CTAs takes one item after the other: 64 rows of w (wgmma's M) for kTokens
// tokens (wgmma's N). Its CTAs split K. In a CTA, a producer thread streams {weight tile,
// activation tile} through one ring per consumer warpgroup; if all of the CTA's activations fit
// into the rings, they stay there and only weights follow. The warpgroups take k tiles in turn,
// decode the weights into A fragments and apply the group scale in FP32. The partial sums of all
// warpgroups of all CTAs then meet in shared memory: each CTA adds up its share of the tokens, in a
// fixed order, and stores it. No atomics and no workspace: results do not depend on timing.
//
// Odd codes multiply to sum((2q+1) x); a wgmma with the constant -1 takes sum(x) off again, in the
// same accumulators and while the ALUs still decode. With zero points the sum is kept apart: (2q+1)
// - (1+2z) = 2 (q-z).
#pragma once

#include <iterator>

#include "int4fp8/sm90_decode_config.h"
#include "int4fp8/sm90_fragments.h"
#include "int4fp8/sm90_store.h"
#include "int4fp8/sm90_tiles.h"
#include "wlib/sm90/cluster.h"
#include "wlib/sm90/copy.h"
#include "wlib/sm90/dependency.h"
#include "wlib/sm90/ring.h"
#include "wlib/sm90/sync.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::int4fp8 {

constexpr int kPartialPitch = int4::kTileRows + 4;  // floats; the 4 spread a store over all banks

template <class C>
struct DecodeSmem {
  alignas(1024) uint8_t x[C::kConsumers][C::kStages][C::kActivationBytes];
  alignas(1024) uint32_t ones[int4::kTileRows * 128 / 4];  // an A operand of +1 or -1
  alignas(128) uint8_t weights[C::kConsumers][C::kStages][C::kTileBytes];
  // Two items' partial sums: [source warpgroup of the cluster, token of this CTA's share]; their
  // number does not depend on the cluster's size.
  alignas(128) float partial[2][C::kConsumers * C::kTokens][kPartialPitch];
  ExpertTable experts;
  sm90::Ring<C::kStages> ring[C::kConsumers];
  uint64_t gathered[2];  // every consumer warp of the cluster has stored its partial sums here
  uint64_t consumed[2];  // every consumer warp of the cluster has read its share of this buffer
};

// One item as one CTA sees it: a tile of y whose rows are a row block, and a share of K.
struct DecodeItem : TokenTile {
  int first_tile, end_tile;

  WLIB_DEVICE DecodeItem(const DecodeParams& p, const ExpertTable& table, int rank, int item,
                         int tokens)
      : TokenTile(p, table, item, tokens, p.row_blocks, p.token_blocks) {
    first_tile = int(int64_t(p.k_tiles) * rank >> p.split_log2);
    end_tile = int(int64_t(p.k_tiles) * (rank + 1) >> p.split_log2);
  }
};
WLIB_DEVICE int first_item(const DecodeParams& p) { return sm90::block_index_x() >> p.split_log2; }
WLIB_DEVICE int item_stride(const DecodeParams& p) { return sm90::grid_size_x() >> p.split_log2; }
template <class C>
WLIB_DEVICE const uint8_t* rows_of(const DecodeParams& p, const DecodeItem& item) {
  return packed_rows(p, int4::Layout{C::kGroups, C::kZeros}, item.expert, item.row_tile);
}

// What needs not wait for the launch before this one: the first item's weights, as far as the rings
// hold them. The stages expect their activations, too. Returns the first k tile that is left.
template <class C>
WLIB_DEVICE int prefetch_weights(DecodeSmem<C>& s, const DecodeParams& p, int rank) {
  if (first_item(p) >= tile_count(p, s.experts, p.row_blocks)) return 0;
  const DecodeItem item(p, s.experts, rank, first_item(p), C::kTokens);
  const uint8_t* tiles = rows_of<C>(p, item);
  int k = item.first_tile;
  WLIB_NO_UNROLL
  for (int stage = 0; stage < C::kStages; ++stage) {
    for (int g = 0; g < C::kConsumers; ++g, ++k) {
      if (k >= item.end_tile) return k;
      uint64_t& full = s.ring[g].full[stage];
      sm90::mbarrier_arrive_expect_tx(full, C::kTileBytes + C::kActivationBytes);
      sm90::bulk_load(s.weights[g][stage], tiles + int64_t(k) * C::kTileBytes, C::kTileBytes, full);
    }
  }
  return k;
}

template <class C>
WLIB_DEVICE void produce(DecodeSmem<C>& s, const DecodeParams& p, int rank) {
  sm90::RingCursor<C::kStages> at[C::kConsumers];
  const int items = tile_count(p, s.experts, p.row_blocks);
  sm90::prefetch_tensor_map(p.x);
  const int fetched = p.prefetch_weight ? prefetch_weights<C>(s, p, rank) : 0;
  sm90::grid_dependency_wait();
  sm90::launch_dependents();
  for (int i = first_item(p); i < items; i += item_stride(p)) {
    const DecodeItem item(p, s.experts, rank, i, C::kTokens);
    const uint8_t* tiles = rows_of<C>(p, item);
    // Resident activations: the first item brings each tile to the stage of its number.
    const bool load_x = !p.x_resident || i == first_item(p);
    const uint32_t bytes = C::kTileBytes + (load_x ? C::kActivationBytes : 0);
    for (int k = item.first_tile; k < item.end_tile; k += C::kConsumers) {
      WLIB_UNROLL
      for (int g = 0; g < C::kConsumers; ++g) {
        if (k + g >= item.end_tile) continue;
        uint64_t& full = s.ring[g].full[at[g].stage];
        if (i != first_item(p) || k + g >= fetched) {
          s.ring[g].wait_empty(at[g]);
          s.ring[g].expect(at[g], bytes);
          sm90::bulk_load(s.weights[g][at[g].stage], tiles + int64_t(k + g) * C::kTileBytes,
                          C::kTileBytes, full);
        }
        if (load_x) {
          sm90::tensor_load_2d(s.x[g][at[g].stage], p.x, (k + g) * int4::kTileColumns,
                               item.first_token, full);
        }
        at[g].advance();
      }
    }
  }
}

// What a consumer warpgroup keeps in registers from tile to tile.
template <class C>
struct Consumer {
  sm90::Ring<C::kStages>& ring;
  sm90::RingCursor<C::kStages> at;
  const uint8_t* weights;  // of stage 0
  uint64_t x;              // descriptor of stage 0
  uint64_t ones;           // descriptor

  WLIB_DEVICE Consumer(DecodeSmem<C>& s, int index)
      : ring(s.ring[index]),
        weights(s.weights[index][0]),
        x(sm90::swizzled_tile_descriptor(s.x[index][0])),
        ones(sm90::swizzled_tile_descriptor(s.ones)) {}
};

// Issues the wgmmas of one group's k steps. The tile's weights are decoded behind the first
// constant ones.
template <class C>
WLIB_DEVICE void multiply_group(const uint8_t* tile, uint64_t x, int group, uint64_t ones,
                                uint32_t (&a)[4][4], float (&products)[C::kRegs],
                                float (&x_sums)[C::kRegs]) {
  const int first = group * C::kSteps;
  auto& sums = C::kZeros ? x_sums : products;
  sm90::wgmma_fence();
  WLIB_UNROLL
  for (int step = first; step < first + C::kSteps; ++step) {
    sm90::wgmma<typename C::WgmmaOnes>(sums, ones, x + step * sm90::kDescriptorKStep,
                                       step != first);
  }
  if (group == 0) load_fragments<Fragment::kOdd>(tile, a);
  sm90::wgmma_fence();
  WLIB_UNROLL
  for (int step = first; step < first + C::kSteps; ++step) {
    sm90::wgmma<typename C::Wgmma>(products, a[step], x + step * sm90::kDescriptorKStep,
                                   !C::kZeros || step != first);
  }
  sm90::wgmma_commit();
}

template <class C>
WLIB_DEVICE void multiply_tile(Consumer<C>& c, int x_stage, float (&sum)[C::kRegs]) {
  uint32_t a[4][4];
  float products[C::kRegs], x_sums[C::kRegs];
  c.ring.wait_full(c.at);
  const uint8_t* tile = c.weights + c.at.stage * C::kTileBytes;
  const uint64_t x = c.x + uint32_t(x_stage) * (C::kActivationBytes >> 4);
  WLIB_UNROLL
  for (int group = 0; group < C::kGroups; ++group) {
    multiply_group<C>(tile, x, group, c.ones, a, products, x_sums);
    const RowPair<C> rows(tile, group);  // while the tensor cores work
    sm90::wgmma_wait<0>(products);
    if constexpr (C::kZeros) sm90::wgmma_wait<0>(x_sums);
    WLIB_UNROLL
    for (int v = 0; v < C::kRegs; ++v) {
      if constexpr (C::kZeros) products[v] -= rows.zero[v / 2 % 2] * x_sums[v];
      sum[v] += rows.scale[v / 2 % 2] * products[v];
    }
  }
  c.ring.release(c.at);
  c.at.advance();
}

// One arrival per warp on every CTA's copy of the barrier, speaking for all its lanes.
WLIB_DEVICE void arrive_everywhere(uint64_t& barrier, const DecodeParams& p) {
  sm90::warp_sync();
  if (sm90::lane_index() < 1 << p.split_log2)
    sm90::mbarrier_arrive_cluster(barrier, sm90::lane_index());
}

// Sends the warpgroup's partial sums to the CTAs that add them up.
template <class C>
WLIB_DEVICE void scatter(DecodeSmem<C>& s, const DecodeParams& p, const DecodeItem& item,
                         int buffer, int source, const float (&sum)[C::kRegs]) {
  const int t = sm90::thread_in_warpgroup(), share = C::kTokens >> p.split_log2;
  WLIB_UNROLL
  for (int v = 0; v < C::kRegs; ++v) {
    const int token = sm90::accumulator_column(t, v);
    if (item.first_token + token >= item.end_token) continue;
    const int owner = (token << p.split_log2) / C::kTokens, row = sm90::accumulator_row(t, v);
    float* local = &s.partial[buffer][source * share + token % share][row];
    *sm90::cluster_map(local, owner) = sum[v];
  }
}

// An item whose partial sums are on their way, with what its end needs from memory: a lane finishes
// two neighbouring rows of every token that its warp takes.
template <class C>
struct Pending {
  int first_token, end_token, n;
  float2 channel_scale, bias;

  WLIB_DEVICE Pending(const DecodeParams& p, const DecodeItem& item)
      : first_token(item.first_token), end_token(item.end_token), channel_scale{0, 0}, bias{0, 0} {
    const int row = sm90::lane_index() * 2;
    n = item.row_tile * int4::kTileRows + row;
    if (n >= p.n) return;
    const uint8_t* scales = rows_of<C>(p, item) + int64_t(p.k_tiles) * C::kTileBytes;
    channel_scale = reinterpret_cast<const float2*>(scales)[row / 2];
    bias = load_bias(p, item.expert, n);
  }
};

// Adds up this CTA's share of the tokens and stores it; a warp takes the 64 rows of a token.
template <class C>
WLIB_DEVICE void reduce_and_store(DecodeSmem<C>& s, const DecodeParams& p, const Pending<C>& item,
                                  int buffer, int rank) {
  const int share = C::kTokens >> p.split_log2, sources = C::kConsumers << p.split_log2;
  for (int local = sm90::thread_index() / 32; local < share; local += C::kConsumers * 4) {
    const int m = item.first_token + rank * share + local;
    if (m >= item.end_token || item.n >= p.n) break;
    const float scale = p.x_scale[m] * kOddCodeScale;
    const float2 residual = load_residual(p, m, item.n);
    float2 sum = {0, 0};
    for (int source = 0; source < sources; ++source) {
      const float* partial = s.partial[buffer][source * share + local] + sm90::lane_index() * 2;
      const float2 add = *reinterpret_cast<const float2*>(partial);
      sum.x += add.x;
      sum.y += add.y;
    }
    store_pair(p, m, item.n, sum.x * (scale * item.channel_scale.x) + item.bias.x,
               sum.y * (scale * item.channel_scale.y) + item.bias.y, residual);
  }
}

// The item number `index` of this CTA: its place among the two buffers, and their barriers' parity.
struct Turn {
  int buffer;
  uint32_t parity;
  WLIB_DEVICE explicit Turn(int index) : buffer(index % 2), parity(index / 2 % 2) {}
};

template <class C>
WLIB_DEVICE void finish(DecodeSmem<C>& s, const DecodeParams& p, const Pending<C>& item, Turn turn,
                        int rank) {
  sm90::mbarrier_wait_cluster(s.gathered[turn.buffer], turn.parity);
  reduce_and_store<C>(s, p, item, turn.buffer, rank);
  arrive_everywhere(s.consumed[turn.buffer], p);
}

// An item is finished only after the next one's products, so that nobody waits for the exchange.
template <class C>
WLIB_DEVICE void consume(DecodeSmem<C>& s, const DecodeParams& p, int rank, int index) {
  sm90::grid_dependency_wait();  // for scales and bias, and before the first output
  Consumer<C> consumer(s, index);
  int done = 0;  // items scattered
  const int items = tile_count(p, s.experts, p.row_blocks);
  if (first_item(p) >= items) return;
  DecodeItem item(p, s.experts, rank, first_item(p), C::kTokens);
  for (int i = first_item(p); i < items; i += item_stride(p), ++done) {
    const Pending<C> before(p, item);
    item = DecodeItem(p, s.experts, rank, i, C::kTokens);
    float sum[C::kRegs] = {};
    const int tiles = (item.end_tile - item.first_tile - index + C::kConsumers - 1) / C::kConsumers;
    for (int tile = 0; tile < tiles; ++tile)
      multiply_tile(consumer, p.x_resident ? tile : consumer.at.stage, sum);
    const Turn turn(done);
    sm90::mbarrier_wait_cluster(s.consumed[turn.buffer], turn.parity ^ 1);
    scatter<C>(s, p, item, turn.buffer, rank * C::kConsumers + index, sum);
    arrive_everywhere(s.gathered[turn.buffer], p);
    if (done > 0) finish<C>(s, p, before, Turn(done - 1), rank);
  }
  finish<C>(s, p, Pending<C>(p, item), Turn(done - 1), rank);
}

template <class C>
WLIB_DEVICE void init_barriers(DecodeSmem<C>& s, const DecodeParams& p) {
  constexpr int kWarps = 4;  // of a warpgroup
  sm90::debug_name(s.gathered, sizeof s.gathered, "gathered");
  sm90::debug_name(s.consumed, sizeof s.consumed, "consumed");
  for (int buffer = 0; buffer < 2; ++buffer) {
    sm90::mbarrier_init(s.gathered[buffer], (C::kConsumers * kWarps) << p.split_log2);
    sm90::mbarrier_init(s.consumed[buffer], (C::kConsumers * kWarps) << p.split_log2);
  }
  for (int g = 0; g < C::kConsumers; ++g) s.ring[g].init(/*readers=*/kWarps);
}

template <class C>
WLIB_KERNEL(C::kThreads)
decode_kernel(WLIB_GRID_CONSTANT DecodeParams p) {
  auto& s = sm90::dynamic_smem<DecodeSmem<C>>();
  for (int i = sm90::thread_index(); i < int(std::size(s.ones)); i += C::kThreads)
    s.ones[i] = C::kZeros ? kOddPlusOne : kOddMinusOne;
  sm90::fence_proxy_async();
  if (sm90::thread_index() == 0) init_barriers<C>(s, p);
  if (sm90::warp_index() == 1 && is_grouped(p)) {
    sm90::grid_dependency_wait();
    count_blocks(p, C::kTokens, s.experts);
  }
  sm90::cluster_sync();
  const int group = sm90::warpgroup_index(), rank = sm90::warp_uniform(sm90::cluster_rank());
  if (group == C::kConsumers) {
    sm90::release_registers<C::kProducerRegs>();
    if (sm90::warp_index() % 4 == 0) {
      if (sm90::elect()) produce<C>(s, p, rank);
      sm90::warp_sync();
    }
  } else {
    sm90::acquire_registers<C::kConsumerRegs>();
    consume<C>(s, p, rank, group);
  }
  sm90::cluster_sync();  // peers may still arrive on this CTA's barriers
}

}  // namespace wlib::int4fp8

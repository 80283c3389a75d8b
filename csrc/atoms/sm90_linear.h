// y[m] = (base + sum_s c[m, s] atoms[s]) x[m] + bias, without the weight (sm_90a; also runs in the
// simulator).
//
// A persistent CTA takes one item after the other (linear_plan.h). A producer thread streams, for
// every step of the columns, the activations and then each atom's tile, through a ring each.
// Consumer warpgroups own 64 of the rows: a tile's products start from zero in the tensor cores and
// are added to the sums in FP32, times the coefficient of their token. So coefficients per token
// cost nothing more, and neither they nor the sums are rounded. FP8 and INT4 atoms become A
// fragments of the activations' type on the way. The base is an atom with coefficient 1.
// Every item stores its partial sums; a second kernel adds them up in order.
#pragma once

#include "atoms/sm90_linear_int4.h"
#include "atoms/sm90_linear_tiles.h"
#include "wlib/sm90/copy.h"

namespace wlib::atoms {

constexpr int kConsumerBarrier = 1;  // among the consumers

struct LinearItem {
  int part, first_token, first_row;
  int first_chunk, end_chunk, first_atom, end_atom;

  // Blocks of tokens are neighbours: they read the same atoms.
  WLIB_DEVICE LinearItem(const LinearKernelParams& p, LinearTile tile, int64_t index) {
    const LinearPlan& plan = p.plan;
    first_token = int(index % plan.token_blocks) * tile.tokens;
    index /= plan.token_blocks;
    first_row = int(index % plan.row_blocks) * tile.rows;
    part = int(index / plan.row_blocks);
    const int share = part % plan.shares;
    first_chunk = int(int64_t(plan.chunks) * share / plan.shares);
    end_chunk = int(int64_t(plan.chunks) * (share + 1) / plan.shares);
    first_atom = part / plan.shares * kLinearAtoms;
    const int left = p.summands - first_atom;
    end_atom = first_atom + (left < kLinearAtoms ? left : kLinearAtoms);
  }
};

// The consumers' tiles of a packed atom, each with the scales of its rows. Consumers beyond the
// last rows get the last ones' again; their sums are not stored.
template <class C>
WLIB_DEVICE void load_packed(uint8_t* stage, sm90::Ring<kAtomStages>& ring,
                             sm90::RingCursor<kAtomStages> at, const LinearKernelParams& p,
                             int atom, int first_row, int chunk) {
  static_assert(C::kConsumers * kPackedBytes <= C::kStageBytes);
  const int4::Layout layout{p.int4_groups, false};
  const int64_t block_bytes = layout.block_bytes(p.plan.chunks);
  const int blocks = int(int4::ceil_div(p.rows, kConsumerRows));
  uint64_t& full =
      ring.expect(at, C::kConsumers * (layout.tile_bytes() + int4::kChannelScaleBytes));
  WLIB_UNROLL
  for (int consumer = 0; consumer < C::kConsumers; ++consumer, stage += kPackedBytes) {
    const int wanted = first_row / kConsumerRows + consumer;
    const int block = wanted < blocks ? wanted : blocks - 1;
    const uint8_t* tiles = p.packed + (int64_t(atom) * blocks + block) * block_bytes;
    sm90::bulk_load(stage, tiles + int64_t(chunk) * layout.tile_bytes(), layout.tile_bytes(), full);
    sm90::bulk_load(stage + kPackedTileBytes, tiles + int64_t(p.plan.chunks) * layout.tile_bytes(),
                    int4::kChannelScaleBytes, full);
  }
}

template <class C>
WLIB_DEVICE void produce_linear(LinearSmem<C>& s, const LinearKernelParams& p) {
  sm90::RingCursor<kAtomStages> at;
  sm90::RingCursor<kTokenStages> token_at;
  for (int64_t i = sm90::block_index_x(); i < p.plan.items(); i += sm90::grid_size_x()) {
    const LinearItem item(p, C::kTile, i);
    for (int chunk = item.first_chunk; chunk < item.end_chunk; ++chunk) {
      const int column = chunk * C::kTile.columns;
      s.token_ring.wait_empty(token_at);
      uint64_t& tokens_full = s.token_ring.expect(token_at, C::kTiles * C::kTokenBytes);
      WLIB_UNROLL
      for (int tile = 0; tile < C::kTiles; ++tile)
        sm90::tensor_load_2d(s.x[token_at.stage][tile], p.x, column + tile * kTileColumns,
                             item.first_token, tokens_full);
      token_at.advance();
      WLIB_NO_UNROLL
      for (int a = item.first_atom; a < item.end_atom; ++a) {
        s.atom_ring.wait_empty(at);
        uint8_t* stage = s.atoms[at.stage];
        if (C::kAtoms == LinearAtoms::kInt4 && a < p.num_atoms) {
          load_packed<C>(stage, s.atom_ring, at, p, a, item.first_row, chunk);
        } else {
          uint64_t& full = s.atom_ring.expect(at, C::kStageBytes);
          // Rows beyond an atom's last are those of the next one; their sums are not stored.
          if (a < p.num_atoms)
            sm90::tensor_load_2d(stage, p.atoms, column, a * p.rows + item.first_row, full);
          else
            sm90::tensor_load_2d(stage, p.base, column + (a - p.num_atoms) * kTileColumns,
                                 item.first_row, full);
        }
        at.advance();
      }
    }
  }
}

// The item's coefficients, zero for tokens that there are not.
template <class C>
WLIB_DEVICE void load_coefficients(LinearSmem<C>& s, const LinearKernelParams& p,
                                   const LinearItem& item) {
  sm90::barrier_sync(kConsumerBarrier, C::kConsumerThreads);  // the last item's reads
  const int count = (item.end_atom - item.first_atom) * C::kTokens;
  for (int i = sm90::thread_index(); i < count; i += C::kConsumerThreads) {
    const int token = item.first_token + i % C::kTokens;
    const int atom = item.first_atom + i / C::kTokens;
    float value = 0;
    if (token < p.tokens)
      value = atom < p.num_atoms ? p.coef[int64_t(token) * p.coef_stride + atom] : 1.0f;
    s.coef[i / C::kTokens][i % C::kTokens] = value;
  }
  sm90::barrier_sync(kConsumerBarrier, C::kConsumerThreads);
}

template <class C>
WLIB_DEVICE void store_partials(const LinearKernelParams& p, const LinearItem& item, int consumer,
                                const float (&sums)[C::kSums]) {
  const int t = sm90::thread_in_warpgroup();
  WLIB_UNROLL
  for (int v = 0; v < C::kSums; ++v) {
    const int row = item.first_row + consumer * kConsumerRows + sm90::accumulator_row(t, v);
    const int token = item.first_token + sm90::accumulator_column(t, v);
    if (row >= p.rows || token >= p.tokens) continue;
    p.partials[(int64_t(item.part) * p.tokens + token) * p.rows + row] = sums[v];
  }
}

// A consumer's rows of summand a, an atom or a tile of the base.
template <class C>
WLIB_DEVICE void add_summand(const LinearKernelParams& p, const uint8_t* stage, const uint8_t* x,
                             const float* coef, int a, int consumer, float (&sums)[C::kSums]) {
  const uint8_t* rows = stage + consumer * kConsumerRows * kTileBytes;
  const uint8_t* base_x = x + (a - p.num_atoms) * C::kTokenBytes;
  if constexpr (C::kAtoms == LinearAtoms::kLikeX) {
    add_tile<C>(rows, x, coef, sums);
  } else if constexpr (C::kAtoms == LinearAtoms::kFp8) {
    if (a < p.num_atoms)
      add_fp8_tile<C>(rows, x, coef, sums);
    else
      add_tile<C>(rows, base_x, coef, sums);
  } else {
    if (a < p.num_atoms)
      add_int4_tile<C>(p.int4_groups, stage + consumer * kPackedBytes, x, coef, sums);
    else
      add_arranged_tile<C>(rows, base_x, coef, sums);
  }
}

template <class C>
WLIB_DEVICE void consume_linear(LinearSmem<C>& s, const LinearKernelParams& p, int consumer) {
  sm90::RingCursor<kAtomStages> at;
  sm90::RingCursor<kTokenStages> token_at;
  for (int64_t i = sm90::block_index_x(); i < p.plan.items(); i += sm90::grid_size_x()) {
    const LinearItem item(p, C::kTile, i);
    load_coefficients(s, p, item);
    float sums[C::kSums] = {};
    for (int chunk = item.first_chunk; chunk < item.end_chunk; ++chunk) {
      s.token_ring.wait_full(token_at);
      uint8_t* x = s.x[token_at.stage][0];
      if constexpr (C::kAtoms == LinearAtoms::kInt4) arrange_columns<C>(x, kConsumerBarrier);
      for (int a = item.first_atom; a < item.end_atom; ++a) {
        s.atom_ring.wait_full(at);
        add_summand<C>(p, s.atoms[at.stage], x, s.coef[a - item.first_atom], a, consumer, sums);
        s.atom_ring.release(at);
        at.advance();
      }
      s.token_ring.release(token_at);
      token_at.advance();
    }
    store_partials<C>(p, item, consumer, sums);
  }
}

template <class C>
WLIB_KERNEL(C::kThreads)
linear_kernel(WLIB_GRID_CONSTANT LinearKernelParams p) {
  static_assert(sizeof(LinearSmem<C>) <= 227 * 1024);
  auto& s = sm90::dynamic_smem<LinearSmem<C>>();
  if (sm90::thread_index() == 0) {
    s.atom_ring.init(/*readers=*/C::kConsumerThreads / sm90::kWarpThreads);
    s.token_ring.init(/*readers=*/C::kConsumerThreads / sm90::kWarpThreads);
  }
  sm90::block_sync();
  const int group = sm90::warpgroup_index();
  if (group == C::kConsumers) {
    if (sm90::elect()) produce_linear(s, p);
    sm90::warp_sync();
  } else {
    consume_linear(s, p, group);
  }
}

constexpr int kLinearSumThreads = 256;

// A thread adds up the parts of an output, in order.
WLIB_KERNEL(kLinearSumThreads)
linear_sum_kernel(WLIB_GRID_CONSTANT LinearSumParams p) {
  for (int64_t i = int64_t(sm90::block_index_x()) * kLinearSumThreads + sm90::thread_index();
       i < p.outputs; i += int64_t(sm90::grid_size_x()) * kLinearSumThreads) {
    float sum = p.partials[i];
    for (int part = 1; part < p.parts; ++part) sum += p.partials[part * p.outputs + i];
    if (p.bias) sum += sm90::load_float(p.bias, p.type, i % p.rows);
    sm90::store_float(p.out, p.type, i, sum);
  }
}

}  // namespace wlib::atoms

// Products of two 16-bit activations at the places of a sparse matrix, on the tensor cores (sm_90a;
// also runs in the simulator).
//
// A persistent CTA makes a dense tile of dy^T x, 128 rows x 256 columns, over a run of tokens, and
// stores the sums at the places of the values alone. Tokens are the rows of both operands, so that
// the tensor cores read them as they lie; a producer warpgroup has tensor copies bring 64 at a
// time. Two CTAs with neighbouring rows form a cluster: each fetches half of x for both. Two
// consumer warpgroups have 64 rows of the tile each. Runs are added up by sparse_sum_kernel
// (sm90_sparse_sample.h).
#pragma once

#include "sparse_lowrank/sm90_sparse_params.h"
#include "wlib/sm90/sync.h"

namespace wlib::sparse_lowrank {

constexpr int kSampleStages = 4;
constexpr int kPartColumns = 64;       // of the tile, that pass through shared memory at a time
constexpr int kGatheredPositions = 4;  // of a thread, fetched together

struct SampleStage {
  TokenBoxes<kSampleStep, kSparseTile / kBoxColumns> dy;
  TokenBoxes<kSampleStep, kMmaColumns / kBoxColumns> x;
};
struct SampleMmaSmem {
  alignas(1024) SampleStage stage[kSampleStages];
  float sums[kMmaConsumers][kMmaRows][kPartColumns];
  sm90::Ring<kSampleStages> ring;
};

struct SampleItem {
  int row_tile, column_block;
  int64_t split, first_token, end_token;

  // Of the cluster's item and the CTA's rank; the second one may have no rows.
  WLIB_DEVICE SampleItem(const SparseSampleParams& p, int64_t index, int rank) {
    const int64_t block = index % p.blocks(), run = p.sample.run();
    row_tile = int(block / p.column_blocks()) * kPair + rank;
    column_block = int(block % p.column_blocks());
    split = index / p.blocks();
    first_token = split * run;
    const int64_t end = first_token + run;
    end_token = end < p.sample.tokens ? end : p.sample.tokens;
  }
};

// A cluster's items.
WLIB_DEVICE int64_t first_sample() { return sm90::block_index_x() / kPair; }
WLIB_DEVICE int64_t sample_stride() { return sm90::grid_size_x() / kPair; }

WLIB_DEVICE void produce_samples(SampleMmaSmem& s, const SparseSampleParams& p, int rank) {
  sm90::RingCursor<kSampleStages> at;
  for (int64_t i = first_sample(); i < p.items(); i += sample_stride()) {
    const SampleItem item(p, i, rank);
    for (int64_t token = item.first_token; token < item.end_token;
         token += kSampleStep, at.advance()) {
      SampleStage& to = s.stage[at.stage];
      s.ring.wait_empty<kPair>(at);
      uint64_t& full = s.ring.full[at.stage];
      if (sm90::thread_in_warpgroup() == 0)
        s.ring.expect(at, to.dy.copied(p.dy) + to.x.copied(p.x));
      to.dy.load(p.dy, token, item.row_tile * kSparseTile, full);
      to.x.load_shared(p.x, token, item.column_block * kMmaColumns, rank, full);
      sm90::fence_proxy_async();  // what this thread wrote is for wgmma
      s.ring.hand_over(at);
    }
  }
}

// Column of a row in shared memory: a warp's sums of a register lie in all banks.
WLIB_DEVICE int sum_column(int row, int column) { return column ^ row % 8 * 8; }

// Stores those of a warpgroup's sums, 64 rows x 64 columns of a tile, at which the tile has values.
WLIB_DEVICE void store_samples(const SampleParams& p, int64_t tile, int64_t split, int first_row,
                               int first_column, const float (&sums)[kMmaRows][kPartColumns]) {
  const int64_t begin = p.matrix.offsets[tile];
  const int count = int(p.matrix.offsets[tile + 1] - begin);
  WLIB_NO_UNROLL
  for (int first = sm90::thread_in_warpgroup(); first < count;
       first += kGatheredPositions * sm90::kWarpgroupThreads) {
    int16_t position[kGatheredPositions];
    WLIB_UNROLL
    for (int i = 0; i < kGatheredPositions; ++i) {
      const int index = first + i * sm90::kWarpgroupThreads;
      position[i] = p.matrix.positions[begin + (index < count ? index : first)];
    }
    WLIB_UNROLL
    for (int i = 0; i < kGatheredPositions; ++i) {
      const int index = first + i * sm90::kWarpgroupThreads;
      const int row = row_of(position[i]) - first_row;
      const int column = column_of(position[i]) - first_column;
      if (index >= count || uint32_t(row) >= kMmaRows || uint32_t(column) >= kPartColumns) continue;
      const float sum = sums[row][sum_column(row, column)];
      if (p.partials)
        p.partials[split * p.matrix.count + begin + index] = sum;
      else
        sm90::store_float(p.values, p.matrix.value_type, begin + index, sum);
    }
  }
}

WLIB_DEVICE void finish_samples(SampleMmaSmem& s, const SparseSampleParams& p,
                                const SampleItem& item, int consumer, const MmaSums& sums) {
  constexpr int kPartSums = kPartColumns / 2;  // of a thread
  constexpr int kTileParts = kSparseTile / kPartColumns;
  const int t = sm90::thread_in_warpgroup();
  const int barrier = kSumsBarrier + consumer, tiles = p.sample.matrix.column_tiles();
  auto& to = s.sums[consumer];
  WLIB_UNROLL
  for (int part = 0; part < kMmaColumns / kPartColumns; ++part) {
    sm90::barrier_sync(barrier, sm90::kWarpgroupThreads);  // the last part's reads
    WLIB_UNROLL
    for (int v = 0; v < kPartSums; v += 2) {
      const int row = sm90::accumulator_row(t, v), column = sm90::accumulator_column(t, v);
      *reinterpret_cast<float2*>(&to[row][sum_column(row, column)]) = {
          sums[part * kPartSums + v], sums[part * kPartSums + v + 1]};
    }
    sm90::barrier_sync(barrier, sm90::kWarpgroupThreads);
    const int column_tile = item.column_block * (kMmaColumns / kSparseTile) + part / kTileParts;
    if (column_tile >= tiles || item.row_tile >= p.sample.matrix.row_tiles()) continue;
    store_samples(p.sample, int64_t(item.row_tile) * tiles + column_tile, item.split,
                  consumer * kMmaRows, part % kTileParts * kPartColumns, to);
  }
}

template <FloatType kType>
WLIB_DEVICE void consume_samples(SampleMmaSmem& s, const SparseSampleParams& p, int consumer,
                                 int rank) {
  using Op = typename WideMma<kType>::SsMn;
  sm90::RingCursor<kSampleStages> at;
  for (int64_t i = first_sample(); i < p.items(); i += sample_stride()) {
    const SampleItem item(p, i, rank);
    MmaSums sums = {};
    WLIB_NO_UNROLL
    for (int64_t token = item.first_token; token < item.end_token;
         token += kSampleStep, at.advance()) {
      const SampleStage& from = s.stage[at.stage];
      const uint64_t dy = sm90::mn_major_tile_descriptor(from.dy.box[consumer], from.dy.kBoxBytes);
      const uint64_t x = sm90::mn_major_tile_descriptor(from.x.box[0], from.x.kBoxBytes);
      s.ring.wait_full(at);
      sm90::wgmma_fence();
      WLIB_UNROLL
      for (int k = 0; k < kSampleStep / 16; ++k)
        sm90::wgmma<Op>(sums, dy + k * sm90::kMnDescriptorKStep, x + k * sm90::kMnDescriptorKStep,
                        true);
      sm90::wgmma_commit();
      sm90::wgmma_wait<0>(sums);
      s.ring.release<kPair>(at);
    }
    finish_samples(s, p, item, consumer, sums);
  }
}

template <FloatType kType>
WLIB_KERNEL(kMmaThreads)
sparse_sample_mma_kernel(WLIB_GRID_CONSTANT SparseSampleParams p) {
  static_assert(sizeof(SampleMmaSmem) <= 227 * 1024);
  auto& s = sm90::dynamic_smem<SampleMmaSmem>();
  if (sm90::thread_index() == 0) s.ring.init(kPair * kMmaReaders, kMmaWriters);
  sm90::cluster_sync();
  const int rank = sm90::warp_uniform(sm90::cluster_rank());
  const int group = sm90::warpgroup_index();
  if (group == kMmaConsumers) {
    sm90::release_registers<kMmaProducerRegs>();
    produce_samples(s, p, rank);
  } else {
    sm90::acquire_registers<kMmaConsumerRegs>();
    consume_samples<kType>(s, p, group, rank);
  }
  sm90::cluster_sync();  // the peer may still write and arrive here
}

}  // namespace wlib::sparse_lowrank

// y[m, n] = alpha * sum_k a[m, k] * b[n, k], a and b as FP8 carriers or as packed FP4 (sm_90a; also
// runs in the simulator).
//
// A persistent CTA takes one tile of y after the other: 128 rows of a for 256 rows of b. Two
// consumer warpgroups have 64 rows of a each, in registers; b lies in shared memory. A consumer
// multiplies a stage of K with 64 rows of b after the other: while the FP8 products of one part are
// made, those of the part before are added to the sums in FP32, which is the promotion that FP8
// accumulators need; BF16 products are added to the sums by the tensor cores. The producer
// warpgroup keeps a ring of stages filled:
//   carriers   one thread fetches; two CTAs with neighbouring rows of a form a cluster, and each
//              fetches half of b for both
//   packed     one thread fetches codes and scales of a and b; all of the warpgroup expand those
//              of b, the consumers those of a on their way into registers
#pragma once

#include "fp4/sm90_matmul_config.h"
#include "fp4/sm90_matmul_store.h"
#include "wlib/sm90/cluster.h"
#include "wlib/sm90/copy.h"
#include "wlib/sm90/sync.h"

namespace wlib::fp4 {

template <class C>
struct MatmulSmem {
  alignas(1024) uint8_t b[C::kStages][C::kTileColumns * kRowBytes];
  typename C::Fetched fetched[C::kStages];
  uint32_t votes[C::kThreads / sm90::kWarpThreads];
  uint64_t raw_full[C::kStages];  // packed: codes and scales have landed
  sm90::Ring<C::kStages> ring;
};

constexpr int kProducerBarrier = 1;

struct alignas(16) RowChunk {
  uint32_t word[kQuad];
};

// A cluster's tiles, its rank chooses the rows.
template <class C>
WLIB_DEVICE int first_tile() {
  return sm90::block_index_x() / C::kCtas;
}
template <class C>
WLIB_DEVICE int tile_stride() {
  return sm90::grid_size_x() / C::kCtas;
}
WLIB_DEVICE int tile_count(const MatmulKernelParams& p) { return p.row_tiles * p.column_tiles; }
template <class C>
WLIB_DEVICE int first_row(const Tile& tile, int rank) {
  return (tile.row * C::kCtas + rank) * kTileRows;
}

// All stages of all tiles of this CTA, one after the other.
template <class C>
struct StageWalk {
  const MatmulKernelParams& p;
  int index = first_tile<C>(), k = 0;

  WLIB_DEVICE bool done() const { return p.k_tiles == 0 || index >= tile_count(p); }
  WLIB_DEVICE void advance() {
    if (++k < p.k_tiles) return;
    k = 0;
    index += tile_stride<C>();
  }
};

template <class C>
WLIB_DEVICE void fetch_carriers(MatmulSmem<C>& s, const MatmulKernelParams& p, int rank) {
  constexpr int kShare = C::kTileColumns / C::kCtas;
  constexpr uint16_t kAll = (1 << C::kCtas) - 1;
  sm90::RingCursor<C::kStages> at;
  for (StageWalk<C> walk{p}; !walk.done(); walk.advance(), at.advance()) {
    const Tile tile = Tile::at<C>(p, walk.index);
    const int column = walk.k * kRowBytes, b_row = tile.column * C::kTileColumns + rank * kShare;
    s.ring.template wait_empty<C::kCtas>(at);
    uint64_t& full = s.ring.expect(at, sizeof s.fetched[0] + sizeof s.b[0]);
    sm90::tensor_load_2d(s.fetched[at.stage].a, p.a, column, first_row<C>(tile, rank), full);
    sm90::tensor_load_2d_multicast(s.b[at.stage] + rank * kShare * kRowBytes, p.b, column, b_row,
                                   full, kAll);
  }
}

// One thread.
template <class C>
WLIB_DEVICE void fetch_codes(MatmulSmem<C>& s, const MatmulKernelParams& p,
                             const StageWalk<C>& walk, int stage) {
  using Scales = QuadScales<typename C::Source::Scale>;
  auto& to = s.fetched[stage];
  uint64_t& full = s.raw_full[stage];
  const Tile tile = Tile::at<C>(p, walk.index);
  const int column = walk.k * C::Fetched::kCodeBytes, a_row = first_row<C>(tile, 0),
            b_row = tile.column * C::kTileColumns;
  const auto* a_scales = static_cast<const Scales*>(p.a_scales) + int64_t(walk.k) * p.a_pitch;
  const auto* b_scales = static_cast<const Scales*>(p.b_scales) + int64_t(walk.k) * p.b_pitch;
  sm90::mbarrier_arrive_expect_tx(
      full, sizeof to.a + sizeof to.b + sizeof to.a_scales + sizeof to.b_scales);
  sm90::tensor_load_2d(to.a, p.a, column, a_row, full);
  sm90::tensor_load_2d(to.b, p.b, column, b_row, full);
  sm90::bulk_load(to.a_scales, a_scales + a_row, sizeof to.a_scales, full);
  sm90::bulk_load(to.b_scales, b_scales + b_row, sizeof to.b_scales, full);
}

// Codes of b -> rows for wgmma. A thread has whole rows: it reads 16 bytes at once, and writes as
// many, which are of four blocks.
template <class C>
WLIB_DEVICE void expand(MatmulSmem<C>& s, int stage) {
  using Source = typename C::Source;
  constexpr int kBytes = C::Fetched::kCodeBytes, kChunks = kBytes / 16,
                kWords = Source::Words::kCount;
  const auto& from = s.fetched[stage];
  WLIB_NO_UNROLL  // few registers
      for (int row = sm90::thread_in_warpgroup(); row < C::kTileColumns;
           row += sm90::kWarpgroupThreads) {
    const auto scales = from.b_scales[row];
    RowChunk codes[kChunks];
    WLIB_UNROLL
    for (int c = 0; c < kChunks; ++c)
      codes[c] = *reinterpret_cast<const RowChunk*>(from.b + swizzled<kBytes>(row, c * 16));
    WLIB_UNROLL
    for (int i = 0; i < kWords; ++i) {
      uint32_t words[kQuad][Source::kExpanded];
      WLIB_UNROLL
      for (int q = 0; q < kQuad; ++q) {
        const int at = q * kWords + i;
        Source::expand(codes[at / 4].word[at % 4], Source::factor(scales.of[q]), words[q]);
      }
      WLIB_UNROLL
      for (int j = 0; j < Source::kExpanded; ++j) {
        const int chunk = i * Source::kExpanded + j;
        auto* to = s.b[stage] + swizzled<kRowBytes>(row, chunk * 16);
        *reinterpret_cast<RowChunk*>(to) = {{words[0][j], words[1][j], words[2][j], words[3][j]}};
      }
    }
  }
}

// Codes of the next stage are fetched while those of this one are expanded, by a thread of one warp
// after the other: each is with another scheduler.
template <class C>
WLIB_DEVICE void produce_packed(MatmulSmem<C>& s, const MatmulKernelParams& p) {
  static_assert(C::kStages <= 4);
  const int thread = sm90::thread_in_warpgroup();
  sm90::RingCursor<C::kStages> at;
  StageWalk<C> next{p};
  bool fetched = false;
  const auto fetch_next = [&](sm90::RingCursor<C::kStages> to) {
    fetched = !next.done();
    if (!fetched) return;
    if (thread == to.stage * sm90::kWarpThreads) {
      s.ring.wait_empty(to);
      fetch_codes(s, p, next, to.stage);
    }
    next.advance();
  };
  for (fetch_next(at); fetched; at.advance()) {
    auto ahead = at;
    ahead.advance();
    fetch_next(ahead);
    sm90::mbarrier_wait(s.raw_full[at.stage], at.parity);
    expand(s, at.stage);
    sm90::fence_proxy_async();  // what this thread wrote is for wgmma
    sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);
    if (thread == 0) sm90::mbarrier_arrive(s.ring.full[at.stage]);
  }
}

template <class C>
WLIB_DEVICE void expand_block(const typename C::Source::Words& codes,
                              typename C::Source::Scale scale, uint32_t (&out)[kSteps * kHalves]) {
  using Source = typename C::Source;
  const auto factor = Source::factor(scale);
  WLIB_UNROLL
  for (int i = 0; i < Source::Words::kCount; ++i) {
    uint32_t words[Source::kExpanded];
    Source::expand(codes.word[i], factor, words);
    WLIB_UNROLL
    for (int j = 0; j < Source::kExpanded; ++j) out[i * Source::kExpanded + j] = words[j];
  }
}

// A fragments of one stage.
template <class C>
WLIB_DEVICE void load_fragments(const MatmulSmem<C>& s, int stage, uint32_t (&a)[kSteps][4]) {
  const auto& from = s.fetched[stage];
  const int t = sm90::thread_index(), quad = t % kQuad;
  WLIB_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = sm90::accumulator_row(t, 2 * r);
    uint32_t words[kSteps * kHalves];
    if constexpr (C::kPacked) {
      expand_block<C>(from.a[row][quad], from.a_scales[row].of[quad], words);
    } else {
      WLIB_UNROLL
      for (int w = 0; w < kSteps * kHalves; ++w) {
        const auto* word = from.a + swizzled<kRowBytes>(row, w * 16) + quad * 4;
        words[w] = *reinterpret_cast<const uint32_t*>(word);
      }
    }
    WLIB_UNROLL
    for (int w = 0; w < kSteps * kHalves; ++w) a[w / kHalves][w % kHalves * 2 + r] = words[w];
  }
}

// Issues the wgmmas of one part of the columns: to = a b, or to += a b.
template <class C, bool kAdd>
WLIB_DEVICE void multiply_part(const uint32_t (&a)[kSteps][4], uint64_t b, float (&to)[C::kRegs]) {
  sm90::wgmma_fence();
  WLIB_UNROLL
  for (int step = 0; step < kSteps; ++step)
    sm90::wgmma<typename C::Op>(to, a[step], b + step * sm90::kDescriptorKStep, kAdd || step != 0);
  sm90::wgmma_commit();
}

// sum += products, which are complete once only kPending groups of wgmmas are in flight.
template <int kPending, int kRegs>
WLIB_DEVICE void add(float (&products)[kRegs], float (&sum)[kRegs]) {
  sm90::wgmma_wait<kPending>(products);
  WLIB_UNROLL
  for (int v = 0; v < kRegs; ++v) sum[v] += products[v];
}

constexpr uint64_t kDescriptorPart = kPartColumns * kRowBytes >> 4;

// One stage, by FP8 products.
template <class C>
WLIB_DEVICE void multiply_promoted(const uint32_t (&a)[kSteps][4], uint64_t b,
                                   float (&sum)[C::kParts][C::kRegs]) {
  float products[2][C::kRegs];
  WLIB_UNROLL
  for (int part = 0; part < C::kParts; ++part) {
    multiply_part<C, false>(a, b + part * kDescriptorPart, products[part % 2]);
    if (part > 0) add<1>(products[(part - 1) % 2], sum[part - 1]);
  }
  add<0>(products[(C::kParts - 1) % 2], sum[C::kParts - 1]);
}
// One stage, by BF16 products.
template <class C>
WLIB_DEVICE void multiply_in_place(const uint32_t (&a)[kSteps][4], uint64_t b,
                                   float (&sum)[C::kParts][C::kRegs]) {
  WLIB_UNROLL
  for (int part = 0; part < C::kParts; ++part)
    multiply_part<C, true>(a, b + part * kDescriptorPart, sum[part]);
  WLIB_UNROLL
  for (int part = 0; part < C::kParts; ++part) sm90::wgmma_wait<0>(sum[part]);
}

// All stages of a tile.
template <class C>
WLIB_DEVICE void multiply(MatmulSmem<C>& s, int k_tiles, sm90::RingCursor<C::kStages>& at,
                          float (&sum)[C::kParts][C::kRegs]) {
  for (int k = 0; k < k_tiles; ++k, at.advance()) {
    uint32_t a[kSteps][4];
    s.ring.wait_full(at);
    load_fragments(s, at.stage, a);
    const uint64_t b = sm90::swizzled_tile_descriptor(s.b[at.stage]);
    if constexpr (C::kPromotes)
      multiply_promoted<C>(a, b, sum);
    else
      multiply_in_place<C>(a, b, sum);
    s.ring.template release<C::kCtas>(at);
  }
}

template <class C>
WLIB_DEVICE void consume(MatmulSmem<C>& s, const MatmulKernelParams& p, int rank) {
  sm90::RingCursor<C::kStages> at;
  for (int i = first_tile<C>(); i < tile_count(p); i += tile_stride<C>()) {
    float sum[C::kParts][C::kRegs] = {};
    multiply(s, p.k_tiles, at, sum);
    const Tile tile = Tile::at<C>(p, i);
    store_tile<C::kParts, C::kRegs>(p, first_row<C>(tile, rank), tile.column * C::kTileColumns,
                                    sum);
  }
}

template <class C>
WLIB_KERNEL(C::kThreads)
matmul_kernel(WLIB_GRID_CONSTANT MatmulKernelParams p) {
  auto& s = sm90::dynamic_smem<MatmulSmem<C>>();
  const int thread = sm90::thread_index();
  if constexpr (C::kPacked) {
    if (!has_work(p.when, p.wide, p.flags, s.votes)) return;
  }
  if (thread == 0) {
    sm90::debug_name(s.raw_full, sizeof s.raw_full, "raw_full");
    if constexpr (C::kPacked)
      for (uint64_t& full : s.raw_full) sm90::mbarrier_init(full, 1);
    s.ring.init(C::kReaders);
  }
  if constexpr (C::kCtas == 1)
    sm90::block_sync();
  else
    sm90::cluster_sync();
  const int group = sm90::warpgroup_index();
  const int rank = C::kCtas == 1 ? 0 : sm90::warp_uniform(sm90::cluster_rank());
  if (group == kConsumers) {
    sm90::release_registers<C::kProducerRegs>();
    if constexpr (C::kPacked) {
      produce_packed(s, p);
    } else if (sm90::warp_index() % 4 == 0) {
      if (sm90::elect()) fetch_carriers(s, p, rank);
      sm90::warp_sync();
    }
  } else {
    sm90::acquire_registers<C::kConsumerRegs>();
    consume(s, p, rank);
  }
  if constexpr (C::kCtas > 1) sm90::cluster_sync();  // the peer may still write and arrive here
}

}  // namespace wlib::fp4

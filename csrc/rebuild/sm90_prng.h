// sum_i coef[i] * basis_i with the bases made in registers. A thread owns one block of neighbouring
// elements and adds up all bases in order, so that the sum is that of every other device.
// Backwards, coef[i] = sum_e values[e] * basis_i(e): a CTA makes the sums of four bases at a time
// over a chunk of the elements, and sm90_finish.h adds up the chunks.
#pragma once

#include "wlib/params/prng.h"
#include "wlib/sm90/runs.h"
#include "wlib/sm90/sync.h"

namespace wlib::rebuild {

using sm90::kRun;

constexpr int kPrngThreads = 128;

// The four elements of a block of basis i.
template <Distribution kDistribution>
WLIB_DEVICE void basis_values(const PrngParams& p, uint32_t i, uint64_t block,
                              float (&values)[kBlockElements]) {
  const Draw d = draw(p.seed, p.tensor, i, block);
  if constexpr (kDistribution == Distribution::kUniform) {
    WLIB_UNROLL
    for (int j = 0; j < kBlockElements; ++j) values[j] = uniform_value(d.word[j]);
  } else {
    const NormalPair low = normal_values(d.word[0], d.word[1]);
    const NormalPair high = normal_values(d.word[2], d.word[3]);
    WLIB_UNROLL
    for (int j = 0; j < 2; ++j) {
      values[j] = low.value[j];
      values[2 + j] = high.value[j];
    }
  }
}

template <Distribution kDistribution>
WLIB_KERNEL(kPrngThreads)
expand_kernel(WLIB_GRID_CONSTANT PrngParams p) {
  constexpr int kElements = kDistribution == Distribution::kSign ? kSignElements : kBlockElements;
  const auto* coef = static_cast<const float*>(p.coef);
  const int64_t block = int64_t(sm90::block_index_x()) * kPrngThreads + sm90::thread_index();
  float sums[kElements] = {};
  if constexpr (kDistribution == Distribution::kSign) {
    for (int first = 0; first < p.count; first += kSignBases) {
      const Draw d = draw(p.seed, p.tensor, uint32_t(first) / kSignBases, uint64_t(block));
      WLIB_UNROLL
      for (int i = 0; i < kSignBases; ++i) {
        const float c = first + i < p.count ? coef[first + i] : 0.0f;
        WLIB_UNROLL
        for (int j = 0; j < kElements; ++j) sums[j] += sign_value(d.word[i], j, c);
      }
    }
  } else {
    for (int i = 0; i < p.count; ++i) {
      float values[kBlockElements];
      basis_values<kDistribution>(p, uint32_t(i), uint64_t(block), values);
      WLIB_UNROLL
      for (int j = 0; j < kElements; ++j) sums[j] = fmaf(coef[i], values[j], sums[j]);
    }
  }
  WLIB_UNROLL
  for (int j = 0; j < kElements; ++j) {
    if (block * kElements + j < p.elements)
      sm90::store_float(p.values, p.value_type, block * kElements + j, sums[j]);
  }
}

constexpr int kProjectBases = kSignBases;
constexpr int kProjectTile = kPrngThreads * kSignElements;  // elements of a step of a CTA
constexpr int64_t kProjectChunks = 1024;                    // at most; by the elements alone
constexpr int kProjectWarps = kPrngThreads / sm90::kWarpThreads;

struct ProjectGrid {
  int64_t tiles, tiles_per_chunk, chunks;
  WLIB_HOST_DEVICE explicit ProjectGrid(int64_t elements)
      : tiles((elements + kProjectTile - 1) / kProjectTile),
        tiles_per_chunk((tiles + kProjectChunks - 1) / kProjectChunks),
        chunks(tiles > 0 ? (tiles + tiles_per_chunk - 1) / tiles_per_chunk : 0) {}
};

struct ProjectSmem {
  float sums[kProjectWarps][kProjectBases];
};

// Adds the thread's products of a tile with four neighbouring bases.
template <Distribution kDistribution>
WLIB_DEVICE void project_tile(const PrngParams& p, int64_t tile, int first,
                              float (&sums)[kProjectBases]) {
  if constexpr (kDistribution == Distribution::kSign) {
    const int64_t block = tile * kPrngThreads + sm90::thread_index();
    const Draw d = draw(p.seed, p.tensor, uint32_t(first) / kSignBases, uint64_t(block));
    for (int e = 0; e < kSignElements; e += kRun) {
      const int64_t at = block * kSignElements + e;
      float values[kRun];
      sm90::load_values(p.values, p.value_type, at, p.elements - at, values);
      WLIB_UNROLL
      for (int i = 0; i < kProjectBases; ++i) {
        WLIB_UNROLL
        for (int j = 0; j < kRun; ++j) sums[i] += sign_value(d.word[i] >> e, j, values[j]);
      }
    }
  } else {
    constexpr int kBlocks = kProjectTile / kPrngThreads / kBlockElements;
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t block = (tile * kBlocks + b) * kPrngThreads + sm90::thread_index();
      const int64_t at = block * kBlockElements;
      if (at >= p.elements) break;
      float values[kBlockElements], basis[kBlockElements];
      sm90::load_quad(p.values, p.value_type, at, p.elements - at, values);
      WLIB_UNROLL
      for (int i = 0; i < kProjectBases; ++i) {
        basis_values<kDistribution>(p, uint32_t(first + i), uint64_t(block), basis);
        WLIB_UNROLL
        for (int j = 0; j < kBlockElements; ++j) sums[i] = fmaf(values[j], basis[j], sums[i]);
      }
    }
  }
}

// CTAs of one chunk share its groups of bases.
template <Distribution kDistribution>
WLIB_KERNEL(kPrngThreads)
project_kernel(WLIB_GRID_CONSTANT PrngParams p) {
  auto& s = sm90::dynamic_smem<ProjectSmem>();
  const ProjectGrid grid(p.elements);
  const int64_t chunk = sm90::block_index_x() % grid.chunks;
  const int64_t part = sm90::block_index_x() / grid.chunks,
                parts = sm90::grid_size_x() / grid.chunks;
  const int thread = sm90::thread_index();
  for (int64_t first = part * kProjectBases; first < p.count; first += parts * kProjectBases) {
    float sums[kProjectBases] = {};
    for (int64_t t = 0; t < grid.tiles_per_chunk; ++t) {
      const int64_t tile = chunk * grid.tiles_per_chunk + t;
      if (tile < grid.tiles) project_tile<kDistribution>(p, tile, int(first), sums);
    }
    WLIB_UNROLL
    for (float& sum : sums) {
      WLIB_UNROLL
      for (int mask = sm90::kWarpThreads / 2; mask > 0; mask /= 2)
        sum += sm90::warp_shuffle_xor(sum, mask);
    }
    if (sm90::lane_index() == 0) {
      WLIB_UNROLL
      for (int i = 0; i < kProjectBases; ++i) s.sums[thread / sm90::kWarpThreads][i] = sums[i];
    }
    sm90::block_sync();
    if (thread < kProjectBases && first + thread < p.count) {
      float sum = 0;
      WLIB_UNROLL
      for (int warp = 0; warp < kProjectWarps; ++warp) sum += s.sums[warp][thread];
      p.partials[chunk * p.count + first + thread] = sum;
    }
    sm90::block_sync();  // before the next bases' sums
  }
}

}  // namespace wlib::rebuild

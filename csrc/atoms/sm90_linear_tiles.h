// How a consumer of wlib::atoms_linear's kernel multiplies its 64 rows of a step by the tokens and
// adds the products to its sums.
#pragma once

#include <cmath>
#include <type_traits>

#include "atoms/sm90_linear_params.h"
#include "wlib/layout/int4_tile.h"
#include "wlib/sm90/convert.h"
#include "wlib/sm90/ring.h"
#include "wlib/sm90/runs.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::atoms {

constexpr int kConsumerRows = 64;  // wgmma's M
constexpr int kAtomStages = 8, kTokenStages = 2;

// A consumer's rows of an INT4 atom: a tile with room for the scales of four groups, and the scales
// of the rows.
constexpr int kPackedTileBytes = int4::Layout{4, false}.tile_bytes();
constexpr int kPackedBytes = kPackedTileBytes + int4::kChannelScaleBytes;

enum class LinearAtoms { kLikeX, kFp8, kInt4 };

template <FloatType kType_, LinearAtoms kAtoms_>
struct LinearConfig {
  static constexpr FloatType kType = kType_;      // of activations and base
  static constexpr LinearAtoms kAtoms = kAtoms_;  // kLikeX: of kType, too
  static constexpr LinearTile kTile = kAtoms == LinearAtoms::kInt4  ? kLinear4Tile
                                      : kAtoms == LinearAtoms::kFp8 ? kLinear8Tile
                                                                    : kLinear16Tile;
  static constexpr int kTokens = kTile.tokens;
  static constexpr int kTiles = kTile.columns / kTileColumns;  // of activations, per step
  static constexpr int kConsumers = kTile.rows / kConsumerRows;
  static constexpr int kConsumerThreads = kConsumers * sm90::kWarpgroupThreads;
  static constexpr int kThreads = kConsumerThreads + sm90::kWarpThreads;  // the producer's warp
  static constexpr int kStageBytes = kTile.rows * kTileBytes, kTokenBytes = kTokens * kTileBytes;
  static constexpr int kSums = kConsumerRows * kTokens / sm90::kWarpgroupThreads;
  using Mma = std::conditional_t<kType == FloatType::kBFloat16, sm90::WgmmaBF16<kTokens>,
                                 sm90::WgmmaF16<kTokens>>;
};

template <class C>
struct LinearSmem {
  alignas(1024) uint8_t atoms[kAtomStages][C::kStageBytes];
  alignas(1024) uint8_t x[kTokenStages][C::kTiles][C::kTokenBytes];
  alignas(16) float coef[kLinearAtoms][C::kTokens];
  sm90::Ring<kAtomStages> atom_ring;
  sm90::Ring<kTokenStages> token_ring;
};

// sums += c * products, once the products are there.
template <int kSums>
WLIB_DEVICE void add_products(const float* coef, float (&products)[kSums], float (&sums)[kSums]) {
  const int t = sm90::thread_in_warpgroup();
  float c[kSums / 2];
  WLIB_UNROLL
  for (int i = 0; i < kSums / 4; ++i) {  // while the tensor cores work
    const auto two = *reinterpret_cast<const float2*>(coef + sm90::accumulator_column(t, 4 * i));
    c[2 * i] = two.x;
    c[2 * i + 1] = two.y;
  }
  sm90::wgmma_wait<0>(products);
  WLIB_UNROLL
  for (int v = 0; v < kSums; ++v) sums[v] = fmaf(c[v / 4 * 2 + v % 2], products[v], sums[v]);
}

// A tile of 64 rows x 64 columns of 16 bits.
template <class C>
WLIB_DEVICE void add_tile(const uint8_t* tile, const uint8_t* x, const float* coef,
                          float (&sums)[C::kSums]) {
  float products[C::kSums];
  const uint64_t a = sm90::swizzled_tile_descriptor(tile), b = sm90::swizzled_tile_descriptor(x);
  sm90::wgmma_fence();
  WLIB_UNROLL
  for (int step = 0; step < kTileBytes / 32; ++step) {
    const uint64_t inside = step * sm90::kDescriptorKStep;
    sm90::wgmma<typename C::Mma::Ss>(products, a + inside, b + inside, step != 0);
  }
  sm90::wgmma_commit();
  add_products(coef, products, sums);
}

// Issues products (+)= a[first to first + kSteps - 1] times the activations x, a tile or two.
template <class C, int kSteps, int kAll>
WLIB_DEVICE void multiply_fragments(float (&products)[C::kSums], const uint32_t (&a)[kAll][4],
                                    int first, const uint8_t* x, bool accumulate = false) {
  const uint64_t b = sm90::swizzled_tile_descriptor(x);
  sm90::wgmma_fence();
  WLIB_UNROLL
  for (int step = first; step < first + kSteps; ++step) {
    const int at = step / 4 * (C::kTokenBytes >> 4) + step % 4 * int(sm90::kDescriptorKStep);
    sm90::wgmma<typename C::Mma::Rs>(products, a[step], b + at, accumulate || step != first);
  }
  sm90::wgmma_commit();
}

// Two neighbouring codes as a register of an A fragment. Exact: both types hold E4M3.
template <FloatType kType>
WLIB_DEVICE uint32_t fragment(uint16_t codes) {
  const float2 v = sm90::e4m3x2_to_float2(codes);
  return sm90::from_float(kType, v.x) | sm90::from_float(kType, v.y) << 16;
}

// A tile of 64 rows x 128 columns of FP8; x [2][64 tokens x 64 columns].
template <class C>
WLIB_DEVICE void add_fp8_tile(const uint8_t* tile, const uint8_t* x, const float* coef,
                              float (&sums)[C::kSums]) {
  constexpr int kSteps = kTileBytes / 16;
  const int t = sm90::thread_in_warpgroup();
  const int row = sm90::accumulator_row(t, 0);
  uint32_t a[kSteps][4];
  WLIB_UNROLL
  for (int i = 0; i < kSteps * 4; ++i) {
    const int column = i / 4 * 16 + i / 2 % 2 * 8 + t % 4 * 2;
    const int at = (row + i % 2 * 8) * kTileBytes + (column ^ row % 8 * 16);
    a[i / 4][i % 4] = fragment<C::kType>(*reinterpret_cast<const uint16_t*>(tile + at));
  }
  float products[C::kSums];
  multiply_fragments<C, kSteps>(products, a, 0, x);
  add_products(coef, products, sums);
}

}  // namespace wlib::atoms

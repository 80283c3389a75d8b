// What scales depend on beyond their block: in nvfp4 the largest magnitude, of every tile and then
// of all; in mxfp4 with a window the largest scale of a row, here joined from those of its tiles.
#pragma once

#include "fp4/sm90_side.h"

namespace wlib::fp4 {

// Blocks with NaN or Inf do not count.
WLIB_DEVICE void scan_side(const QuantizeParams& p, QuantizeSmem& s) {
  const auto finite = [](uint32_t bits) { return bits < 0x7f800000u ? bits : 0; };
  uint32_t largest = 0;
  Taken taken;
  WLIB_NO_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    take(p, s, round, taken);
    const BlockPair own = largest_of_blocks(taken);
    largest = larger(largest, larger(finite(own.first), finite(own.second)));
  }
  largest = largest_of_lanes(largest, 1, sm90::kWarpThreads);
  sm90::block_sync();  // the side before may still be read
  if (tile_lane() == 0) s.maxima[tile_warp()] = largest;
  sm90::block_sync();
  if (tile_thread() > 0) return;
  WLIB_UNROLL
  for (int i = 0; i < kTileWarps; ++i) largest = larger(largest, s.maxima[i]);
  p.tile_largest[sm90::block_index_x()] = largest;
}

WLIB_KERNEL_RESIDENT(kTileThreads, kTileCtas)
scan_kernel(WLIB_GRID_CONSTANT QuantizeLaunch l) {
  auto& s = sm90::dynamic_smem<QuantizeSmem>();
  start();
  fill<false>(l.side[0], own_corner(l), s);
  WLIB_NO_UNROLL
  for (int i = 0; i < l.sides; ++i) scan_side(l.side[i], s);
}

// Joins what the tiles have found: mxfp4 for 32 rows in a CTA, nvfp4 for all in one.
struct JoinSmem {
  uint32_t largest[kTileWarps][sm90::kWarpThreads];
};

template <bool kMx>
WLIB_KERNEL_RESIDENT(kTileThreads, 4)
join_kernel(WLIB_GRID_CONSTANT QuantizeLaunch l) {
  start();
  auto& s = sm90::dynamic_smem<JoinSmem>();
  const QuantizeParams& p = l.side[sm90::block_index_y()];
  const int warp = tile_warp(), lane = tile_lane();
  const int64_t row = int64_t(sm90::block_index_x()) * sm90::kWarpThreads + lane;
  uint32_t largest = 0;
  if constexpr (kMx) {
    const int64_t count = row < p.rows() ? quantize_tiles(p.columns()) : 0;
    for (int64_t i = warp; i < count; i += kTileWarps)
      largest = larger(largest, p.tile_largest[i * p.rows() + row]);
  } else {
    const int64_t count = quantize_tiles(p.rows()) * quantize_tiles(p.columns());
    for (int64_t i = tile_thread(); i < count; i += kTileThreads)
      largest = larger(largest, p.tile_largest[i]);
  }
  s.largest[warp][lane] = largest;
  sm90::block_sync();
  if (warp > 0) return;
  WLIB_UNROLL
  for (int i = 1; i < kTileWarps; ++i) largest = larger(largest, s.largest[i][lane]);
  if constexpr (kMx) {
    if (row >= p.rows()) return;
    p.row_largest[row] = largest;
    if (p.out.row_scale)
      p.out.row_scale[row] = row_scale(int(largest) - carrier_range(p.carrier).largest);
  } else {
    largest = largest_of_lanes(largest, 1, sm90::kWarpThreads);
    if (lane == 0)
      *p.global_scale = std::bit_cast<float>(largest) /
                        (largest_nv_scale(p.rule, p.rounding) * nv_divisor(p.rounding));
  }
}

}  // namespace wlib::fp4

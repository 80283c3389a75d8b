// Which kernels quantise a matrix, in which order, on which grids.
#pragma once

#include <algorithm>
#include <span>

#include "fp4/sm90_fold.h"

namespace wlib::fp4 {

inline QuantizeLaunch make_launch(std::span<const QuantizeParams> sides) {
  const auto divisor = [](int64_t n) { return cutlass::FastDivmod(int(std::max<int64_t>(n, 1))); };
  QuantizeLaunch l{};
  l.sides = int(sides.size());
  l.tiles = divisor(quantize_tiles(sides[0].source.columns));
  for (int i = 0; i < l.sides; ++i) {
    l.side[i] = sides[i];
    l.strips[i] = divisor(strips_of_row(sides[i]));
  }
  return l;
}

// Calls launch(kernel, grid x, grid y, bytes of shared memory) for one kernel after the other, of
// kTileThreads each, as long as it returns true.
template <bool kMx, class Launch>
bool for_passes(const QuantizeLaunch& l, Launch launch) {
  const QuantizeParams& p = l.side[0];
  const int64_t tiles = quantize_tiles(p.source.rows) * quantize_tiles(p.source.columns);
  int64_t rows = 0, strips = 0;  // of the side that has most
  for (int i = 0; i < l.sides; ++i) {
    const QuantizeParams& side = l.side[i];
    rows = std::max(rows, side.rows());
    strips = std::max(strips, quantize_tiles(side.rows()) * strips_of_row(side));
  }
  const auto run = [&](auto kernel, int64_t x, int y, size_t bytes) {
    return x == 0 || launch(kernel, x, y, bytes);
  };
  const auto of_tiles = [&](auto kernel) { return run(kernel, tiles, 1, sizeof(QuantizeSmem)); };
  const auto join = [&] {
    const int64_t ctas = kMx ? (rows + sm90::kWarpThreads - 1) / sm90::kWarpThreads : 1;
    return run(join_kernel<kMx>, ctas, l.sides, sizeof(JoinSmem));
  };
  if constexpr (kMx) {
    const bool plain = is_plain(p);  // with it the other side
    if (!(plain ? of_tiles(quantize_kernel<true, true>) : of_tiles(quantize_kernel<true, false>)))
      return false;
    if (!p.wants_largest()) return true;
    if (!join()) return false;
    return run(plain ? fold_kernel<true> : fold_kernel<false>, strips, l.sides,
               sizeof(QuantizeSmem));
  } else {
    if (p.wants_largest() && !(of_tiles(scan_kernel) && join())) return false;
    return of_tiles(quantize_kernel<false, false>);
  }
}

}  // namespace wlib::fp4

// The second stage of sums that CTAs have made parts of. Eight lanes take every eighth chunk of a
// sum, in order, then add up theirs, all in float64.
#pragma once

#include "wlib/params/atoms.h"
#include "wlib/sm90/sync.h"

namespace wlib::atoms {

constexpr int kFinishThreads = 128, kFinishLanes = 8;

WLIB_DEVICE double shuffle_xor(double value, int mask) {
  const auto bits = __builtin_bit_cast(uint64_t, value);
  const uint64_t low = sm90::warp_shuffle_xor(uint32_t(bits), mask);
  const uint64_t high = sm90::warp_shuffle_xor(uint32_t(bits >> 32), mask);
  return __builtin_bit_cast(double, high << 32 | low);
}

WLIB_KERNEL(kFinishThreads)
finish_kernel(WLIB_GRID_CONSTANT FinishParams p) {
  constexpr int64_t kPerCta = kFinishThreads / kFinishLanes;
  const int lane = sm90::thread_index() % kFinishLanes;
  const int64_t total = p.rows * p.count;
  for (int64_t first = sm90::block_index_x() * kPerCta; first < total;
       first += sm90::grid_size_x() * kPerCta) {
    const int64_t index = first + sm90::thread_index() / kFinishLanes;
    const int64_t row = index / p.count, i = index % p.count;
    double sum = 0;
    if (index < total) {
      for (int64_t chunk = lane; chunk < p.chunks; chunk += kFinishLanes)
        sum += double(p.partials[(row * p.chunks + chunk) * p.count + i]);
    }
    WLIB_UNROLL
    for (int mask = kFinishLanes / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (index < total && lane == 0) p.out[i * p.rows + row] = float(p.scale * sum);
  }
}

}  // namespace wlib::atoms

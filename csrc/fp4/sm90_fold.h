// What remains of mxfp4 once the largest scale of each row is known: no scale below the window, and
// carriers. Codes are read instead of the values they came from. Only where a block other than
// zeros lies below the window, its tile is quantised again.
#pragma once

#include "fp4/sm90_quantize.h"
#include "fp4/sm90_vote.h"

namespace wlib::fp4 {

// The scales that a row may have, up to its largest one.
struct Window {
  int top, floor;
  WLIB_DEVICE Window(const QuantizeParams& p, uint32_t row_largest)
      : top(int(row_largest)), floor(top > p.window - 1 ? top - (p.window - 1) : 0) {}
};

WLIB_DEVICE void store_carrier(const QuantizeParams& p, Place place, Window window, uint32_t scale,
                               const uint32_t (&words)[kUnit / 8]) {
  const int d = int(scale) - (window.top - carrier_range(p.carrier).largest);
  CarrierTable table = carrier_table(p.carrier, d);
  const uint32_t nan = carrier_nan(p.carrier) * 0x01010101u;
  if (scale == kE8M0NaN) table = {nan, nan};  // the codes are zeros
  uint8_t* to = p.out.carrier + place.at;
  WLIB_UNROLL
  for (int i = 0; i < kUnit / 16; ++i) {
    uint32_t low[2], high[2];
    expand_carrier(words[2 * i], table, low);
    expand_carrier(words[2 * i + 1], table, high);
    *reinterpret_cast<uint4*>(to + 16 * i) = uint4{low[0], low[1], high[0], high[1]};
  }
}

// The units of a thread as the pass before has left them.
template <bool kPlain>
struct StoredUnits {
  uint4 codes[kRounds] = {};
  uint32_t scale[kRounds] = {}, top[kRounds] = {};

  WLIB_DEVICE void load(const QuantizeParams& p, Place place) {
    WLIB_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      if (kPlain || place.inside()) {
        codes[round] = *reinterpret_cast<const uint4*>(p.out.codes + uint64_t(place.at) / 2);
        scale[round] = scale_of<kMxBlock, kPlain>(p, place);
        top[round] = p.row_largest[place.row];
      }
      place.to_next_round(p);
    }
  }
  // Whether one must be quantised again.
  WLIB_DEVICE bool below(const QuantizeParams& p) const {
    bool found = false;
    WLIB_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      const uint4 c = codes[round];
      if (int(scale[round]) < Window(p, top[round]).floor)
        found |= ((c.x | c.y | c.z | c.w) & 0x77777777u) != 0;
    }
    return found;
  }
  WLIB_DEVICE void fold(const QuantizeParams& p, Place place) const {
    WLIB_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      if (kPlain || place.inside()) {
        const Window window(p, top[round]);
        const uint4 c = codes[round];
        const uint32_t raised = larger(scale[round], uint32_t(window.floor));
        if (raised != scale[round]) scale_of<kMxBlock, kPlain>(p, place) = uint8_t(raised);
        if (p.out.carrier) store_carrier(p, place, window, raised, {c.x, c.y, c.z, c.w});
      }
      place.to_next_round(p);
    }
  }
};

template <bool kPlain>
WLIB_DEVICE void quantize_again(const QuantizeParams& p, QuantizeSmem& s) {
  Taken taken;
  WLIB_NO_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    taken.take<kPlain>(p, s, round);
    Place place = taken_place(p, s.corner);
    if (round > 0) place.to_next_round(p);
    if (!kPlain && !place.inside()) continue;
    const Window window(p, p.row_largest[place.row]);
    uint32_t words[kUnit / 8];
    const uint32_t scale = quantize_mx<kPlain>(p, place, taken, uint32_t(window.floor), words);
    if (p.out.carrier) store_carrier(p, place, window, scale, words);
  }
}

template <bool kPlain>
WLIB_KERNEL_RESIDENT(kTileThreads, kTileCtas)
fold_kernel(WLIB_GRID_CONSTANT QuantizeLaunch l) {
  auto& s = sm90::dynamic_smem<QuantizeSmem>();
  start();
  const Corner corner = own_corner(l.side[0]);
  const auto place_on = [&](int i) { return place_of(l.side[i], corner, Unit(0)); };
  const Place first = place_on(0), second = l.sides == 2 ? place_on(1) : first;
  StoredUnits<kPlain> units[2];
  units[0].load(l.side[0], first);
  if (l.sides == 2) units[1].load(l.side[1], second);
  bool below = units[0].below(l.side[0]);
  if (l.sides == 2) below |= units[1].below(l.side[1]);
  if (any_thread(below, s.votes)) {
    fill<kPlain>(l.side[0], corner, s);
    WLIB_NO_UNROLL
    for (int i = 0; i < l.sides; ++i) quantize_again<kPlain>(l.side[i], s);
  } else {
    units[0].fold(l.side[0], first);
    if (l.sides == 2) units[1].fold(l.side[1], second);
  }
}

// Calls launch(kernel, grid x, grid y, bytes of shared memory) for one kernel after the other, of
// kTileThreads each, as long as it returns true.
template <bool kMx, class Launch>
bool for_passes(const QuantizeLaunch& l, Launch launch) {
  const QuantizeParams& p = l.side[0];
  const int64_t tiles = quantize_tiles(p.source.rows) * quantize_tiles(p.source.columns);
  const int64_t longest = l.sides == 1                       ? p.rows()
                          : p.source.rows > p.source.columns ? p.source.rows
                                                             : p.source.columns;
  const auto run = [&](auto kernel, int64_t x, int y, size_t bytes) {
    return x == 0 || launch(kernel, x, y, bytes);
  };
  const auto of_tiles = [&](auto kernel) { return run(kernel, tiles, 1, sizeof(QuantizeSmem)); };
  const auto join = [&] {
    const int64_t ctas = kMx ? (longest + sm90::kWarpThreads - 1) / sm90::kWarpThreads : 1;
    return run(join_kernel<kMx>, ctas, l.sides, sizeof(JoinSmem));
  };
  if constexpr (kMx) {
    const bool plain = is_plain(p);  // with it the other side
    if (!(plain ? of_tiles(quantize_kernel<true, true>) : of_tiles(quantize_kernel<true, false>)))
      return false;
    if (!p.wants_largest()) return true;
    return join() && (plain ? of_tiles(fold_kernel<true>) : of_tiles(fold_kernel<false>));
  } else {
    if (p.wants_largest() && !(of_tiles(scan_kernel) && join())) return false;
    return of_tiles(quantize_kernel<false, false>);
  }
}

}  // namespace wlib::fp4

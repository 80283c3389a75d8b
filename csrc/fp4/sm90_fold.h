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
  WLIB_DEVICE Window() : top(0), floor(0) {}
  WLIB_DEVICE Window(const QuantizeParams& p, uint32_t row_largest)
      : top(int(row_largest)), floor(top > p.window - 1 ? top - (p.window - 1) : 0) {}
};

// The table of a block's scale in the window.
struct CarrierTables {
  Carrier carrier;
  NormalTables normal;
  int largest;  // d
  WLIB_DEVICE explicit CarrierTables(Carrier carrier)
      : carrier(carrier), normal(normal_tables(carrier)), largest(carrier_range(carrier).largest) {}
  WLIB_DEVICE CarrierTable of(Window window, uint32_t scale) const {
    const int d = int(scale) - (window.top - largest);
    const auto steps = uint32_t(d - normal.least);
    if (steps <= uint32_t(largest - normal.least)) return normal.at(steps);
    if (scale != kE8M0NaN) return carrier_table(carrier, d);
    const uint32_t nan = carrier_nan(carrier) * 0x01010101u;
    return {nan, nan};  // the codes are zeros
  }
};

WLIB_DEVICE void store_carrier(uint8_t* to, CarrierTable table,
                               const uint32_t (&words)[kUnit / 8]) {
  WLIB_UNROLL
  for (int i = 0; i < kUnit / 16; ++i) {
    uint32_t low[2], high[2];
    expand_carrier(words[2 * i], table, low);
    expand_carrier(words[2 * i + 1], table, high);
    *reinterpret_cast<uint4*>(to + 16 * i) = uint4{low[0], low[1], high[0], high[1]};
  }
}

// A CTA folds a strip: neighbouring tiles along the rows of a side, which share places and windows.
constexpr int kStripTiles = 4;
inline int64_t strips_of_row(const QuantizeParams& p) {
  return (quantize_tiles(p.columns()) + kStripTiles - 1) / kStripTiles;
}

// The units of a thread in a strip as the pass before has left them.
template <bool kPlain>
struct StoredUnits {
  uint4 codes[kStripTiles][kRounds] = {};
  uint32_t scale[kStripTiles][kRounds];
  Window window[kRounds];
  uint8_t *scales[kRounds], *carriers[kRounds];  // of the first tile
  int scale_step;                                // bytes to those of the next one
  int tiles[kRounds];                            // that have such a unit

  WLIB_DEVICE StoredUnits(const QuantizeParams& p, Place place, int whole_tiles) {
    scale_step = kPlain || !p.swizzle ? kTile / kMxBlock : kScaleAtomRows * kScaleAtomColumns;
    WLIB_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      const int left = place.inside() ? int(p.columns()) - place.column + kTile - 1 : 0;
      tiles[round] = kPlain ? whole_tiles : left / kTile;
      if (tiles[round] > 0) window[round] = Window(p, p.row_largest[place.row]);
      scales[round] = &scale_of<kMxBlock, kPlain>(p, place);
      carriers[round] = p.out.carrier + place.at;
      const uint8_t* from = p.out.codes + uint64_t(place.at) / 2;
      WLIB_UNROLL
      for (int t = 0; t < kStripTiles; ++t) {
        scale[t][round] = kE8M0NaN;  // of what is not there
        if (t >= tiles[round]) continue;
        codes[t][round] = *reinterpret_cast<const uint4*>(from + t * (kTile / 2));
        scale[t][round] = scales[round][t * scale_step];
      }
      place.to_next_round(p);
    }
  }
  WLIB_DEVICE bool is_below(int t, int round) const {
    return int(scale[t][round]) < window[round].floor;
  }
  WLIB_DEVICE bool any_below() const {
    bool found = false;
    WLIB_UNROLL
    for (int t = 0; t < kStripTiles; ++t) {
      WLIB_UNROLL
      for (int round = 0; round < kRounds; ++round) found |= is_below(t, round);
    }
    return found;
  }
  // Whether one of a tile is not zeros, and must be quantised again.
  WLIB_DEVICE bool lost(int t) const {
    bool found = false;
    WLIB_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      const uint4 c = codes[t][round];
      found |= is_below(t, round) && ((c.x | c.y | c.z | c.w) & 0x77777777u) != 0;
    }
    return found;
  }
  WLIB_DEVICE void fold(const CarrierTables& tables, bool has_carriers, int t) const {
    WLIB_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      if (t >= tiles[round]) continue;
      const uint4 c = codes[t][round];
      const uint32_t raised = larger(scale[t][round], uint32_t(window[round].floor));
      if (raised != scale[t][round]) scales[round][t * scale_step] = uint8_t(raised);
      if (has_carriers)
        store_carrier(carriers[round] + t * kTile, tables.of(window[round], raised),
                      {c.x, c.y, c.z, c.w});
    }
  }
};

template <bool kPlain>
WLIB_DEVICE void quantize_again(const QuantizeParams& p, QuantizeSmem& s) {
  Place place = taken_place(p, s.corner);
  Taken units[kRounds];
  take<kPlain>(p, s, units);
  WLIB_UNROLL
  for (Taken& taken : units) {
    if (kPlain || place.inside()) {
      const Window window(p, p.row_largest[place.row]);
      uint32_t words[kUnit / 8];
      const uint32_t scale = quantize_mx<kPlain>(p, place, taken, uint32_t(window.floor), words);
      if (p.out.carrier)
        store_carrier(p.out.carrier + place.at, CarrierTables(p.carrier).of(window, scale), words);
    }
    place.to_next_round(p);
  }
}

template <bool kPlain>
WLIB_KERNEL_RESIDENT(kTileThreads, kTileCtas)
fold_kernel(WLIB_GRID_CONSTANT QuantizeLaunch l) {
  auto& s = sm90::dynamic_smem<QuantizeSmem>();
  start();
  const QuantizeParams& p = l.side[sm90::block_index_y()];
  const Corner strip = corner_of(sm90::block_index_x(), l.strips[sm90::block_index_y()]);
  const int row = strip.row, column = strip.column * kStripTiles;  // of what was quantised
  if (row >= int(p.rows())) return;                                // the other side has more strips
  const Unit unit(0);
  const StoredUnits<kPlain> units(p, {p, row + unit.line, column + unit.block * kUnit},
                                  (int(p.columns()) - column) / kTile);
  uint32_t again = 0;  // a bit for each tile
  if (any_thread(units.any_below(), s.votes)) {
    WLIB_UNROLL
    for (int t = 0; t < kStripTiles; ++t) {
      sm90::block_sync();  // the votes before
      again |= uint32_t(any_thread(units.lost(t), s.votes)) << t;
    }
  }
  const CarrierTables tables(p.carrier);
  WLIB_UNROLL
  for (int t = 0; t < kStripTiles; ++t) {
    if (!(again >> t & 1)) units.fold(tables, p.out.carrier != nullptr, t);
  }
  WLIB_NO_UNROLL
  for (int t = 0; t < kStripTiles; ++t) {
    if (!(again >> t & 1)) continue;
    const int first = column + t * kTile;
    sm90::block_sync();  // the tile before
    fill<kPlain>(p, p.transpose ? Corner{first, row} : Corner{row, first}, s);
    quantize_again<kPlain>(p, s);
  }
}

}  // namespace wlib::fp4

// Scales of packed operands in the order in which the matmul fetches them, converted to what it
// multiplies with (sm_90a; also runs in the simulator). They are a 17th of an operand's bytes.
//
// For fold8 also a power of two per row, which the scales are counted from, and whether there is a
// row that cannot be folded: its scales span more binades than E5M2's normal numbers, or one is
// NaN.
#pragma once

#include "fp4/sm90_matmul_config.h"
#include "wlib/numerics/e4m3.h"
#include "wlib/numerics/e8m0.h"
#include "wlib/sm90/sync.h"

namespace wlib::fp4 {

constexpr int kArrangeWarps = 8;
constexpr int kArrangeThreads = kArrangeWarps * sm90::kWarpThreads;
using ArrangeSmem = uint32_t[kArrangeWarps];  // votes

struct ArrangeParams {
  Packed side[2];  // a and b
  int rows[2], ctas_of_a;
  int k;
  Workspace to;
  When when;
};

// One of the operands, and the rows of it that a CTA has.
struct ArrangedRows {
  Packed from;
  int rows, first, blocks, pitch;
  int side;

  WLIB_DEVICE ArrangedRows(const ArrangeParams& p, int cta) {
    side = cta >= p.ctas_of_a;
    from = p.side[side];
    rows = p.rows[side];
    first = (side ? cta - p.ctas_of_a : cta) * kArrangedRows;
    blocks = p.k / (from.global_scale ? kNvBlock : kMxBlock);
    pitch = int(ceil_div(rows, kRowAlignment)) * kRowAlignment;
  }
};

WLIB_DEVICE int warp_max(int value) {
  WLIB_UNROLL
  for (int mask = sm90::kWarpThreads / 2; mask > 0; mask /= 2) {
    const int other = int(sm90::warp_shuffle_xor(uint32_t(value), mask));
    value = other > value ? other : value;
  }
  return value;
}

// Only zeros, of either sign?
WLIB_DEVICE bool is_zero(const uint8_t* codes) {
  const auto block = *reinterpret_cast<const CodeWords<4>*>(codes);
  uint32_t magnitudes = 0;
  for (const uint32_t word : block.word) magnitudes |= word & 0x77777777u;
  return magnitudes == 0;
}

// One row by one warp; returns whether its scales span too much, or one is NaN.
WLIB_DEVICE bool arrange_row(FoldedCodes, const ArrangeParams& p, const ArrangedRows& r, int row) {
  auto* to = reinterpret_cast<QuadScales<uint8_t>*>(p.to.folded[r.side]) + row;
  const bool exists = row < r.rows;
  const uint8_t* scales = r.from.scales + int64_t(row) * r.blocks;
  int top = 0;
  for (int i = sm90::lane_index(); exists && i < r.blocks; i += sm90::kWarpThreads)
    if (scales[i] > top) top = scales[i];
  top = warp_max(top);
  const int base = top - carrier_range(Carrier::kE5M2).largest;
  if (exists && sm90::lane_index() == 0) p.to.row_scale[r.side][row] = row_scale(base);
  bool wide = false;
  const int stages = (r.blocks + kQuad - 1) / kQuad;
  for (int k = sm90::lane_index(); k < stages; k += sm90::kWarpThreads) {
    QuadScales<uint8_t> four = {};
    for (int q = 0; q < kQuad; ++q) {
      const int block = k * kQuad + q;
      if (!exists || block >= r.blocks) continue;
      const int scale = scales[block], d = scale - base;
      if (scale == int(kE8M0NaN))
        wide = true;
      else if (d >= FoldedCodes::kLeast)
        four.of[q] = uint8_t(d - FoldedCodes::kLeast);
      else  // some other scale, and no harm done if there is nothing but zeros
        wide |= !is_zero(r.from.codes + (int64_t(row) * r.blocks + block) * (kMxBlock / 2));
    }
    to[int64_t(k) * r.pitch] = four;
  }
  return wide;
}

WLIB_DEVICE uint16_t bf16_bits(float value) {  // exact
  return uint16_t(__builtin_bit_cast(uint32_t, value) >> 16);
}
WLIB_DEVICE bool arrange_row(BF16Codes, const ArrangeParams& p, const ArrangedRows& r, int row) {
  auto* to = reinterpret_cast<QuadScales<uint16_t>*>(p.to.bf16[r.side]) + row;
  const bool nv = r.from.global_scale;
  const uint8_t* scales = r.from.scales + int64_t(row) * r.blocks;
  const int halves = p.k / kNvBlock, stages = (halves + kQuad - 1) / kQuad;
  for (int k = sm90::lane_index(); k < stages; k += sm90::kWarpThreads) {
    QuadScales<uint16_t> four = {};
    for (int q = 0; q < kQuad; ++q) {
      const int half = k * kQuad + q;
      if (row >= r.rows || half >= halves) continue;
      four.of[q] = bf16_bits(nv ? e4m3_to_float(scales[half]) : e8m0_to_float(scales[half / 2]));
    }
    to[int64_t(k) * r.pitch] = four;
  }
  return false;
}

inline ArrangeParams make_arrange_params(const MatmulParams& op, const Workspace& w, When when) {
  return {{op.a.packed, op.b.packed},
          {int(op.a.rows), int(op.b.rows)},
          int(padded_rows(op.a.rows) / kArrangedRows),
          int(op.k),
          w,
          when};
}

template <class Source>
WLIB_KERNEL_RESIDENT(kArrangeThreads, 4)
arrange_scales_kernel(WLIB_GRID_CONSTANT ArrangeParams p) {
  auto& votes = sm90::dynamic_smem<ArrangeSmem>();
  if (!has_work(p.when, p.to.wide, int(p.to.flags), votes)) return;
  const ArrangedRows r(p, sm90::block_index_x());
  bool wide = false;
  for (int i = sm90::warp_index(); i < kArrangedRows; i += kArrangeWarps)
    wide |= arrange_row(Source{}, p, r, r.first + i);
  if constexpr (std::is_same_v<Source, FoldedCodes>) {
    wide = any_thread(wide, votes);
    if (sm90::thread_index() == 0) p.to.wide[sm90::block_index_x()] = wide;
  }
}

}  // namespace wlib::fp4

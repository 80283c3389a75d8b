// How wlib::atoms_linear's kernel cuts its work up. Host and device; follows from sizes alone, so
// that the order of all sums does, too.
#pragma once

#include <cstdint>

namespace wlib::atoms {

constexpr int kLinearAtoms = 128;  // of an item, whose coefficients are in shared memory
constexpr int kNominalSms = 132;
constexpr int kMinSteps = 16;  // tiles of an item: partial sums then cost little beside them
constexpr int kMaxShares = 16;

// What a CTA works on at a time: tokens are wgmma's N, and each consumer has wgmma's M of the rows;
// a step has so many columns of one atom's rows.
struct LinearTile {
  int tokens, rows, columns;
};
// Two consumers for atoms of 16 or 8 bits. INT4 atoms come faster than the tensor cores could
// multiply them with 64 tokens, and decoding asks for more warps.
constexpr LinearTile kLinear16Tile = {64, 128, 64}, kLinear8Tile = {64, 128, 128},
                     kLinear4Tile = {32, 192, 128};

// An item is a block of rows for a block of tokens, and of the sum over columns and atoms a share
// of the columns and a block of atoms: its part.
struct LinearPlan {
  int token_blocks, row_blocks, atom_blocks;
  int chunks, shares;  // steps of columns, and how they are shared out
  constexpr int parts() const { return atom_blocks * shares; }
  constexpr int64_t items() const { return int64_t(token_blocks) * row_blocks * parts(); }
};

// `summands` are the atoms and the tiles of the base. As few shares as fill the device well: one
// more has to save an eighth.
constexpr LinearPlan plan_linear(int64_t tokens, int64_t rows, int64_t columns, int64_t summands,
                                 LinearTile tile) {
  const auto blocks = [](int64_t count, int64_t size) { return int((count + size - 1) / size); };
  LinearPlan plan{blocks(tokens, tile.tokens), blocks(rows, tile.rows),
                  blocks(summands, kLinearAtoms), blocks(columns, tile.columns), 1};
  const int64_t items = plan.items();
  const int64_t steps = plan.chunks * (summands < kLinearAtoms ? summands : kLinearAtoms);
  const auto waves = [&](int64_t shares) { return int64_t(blocks(items * shares, kNominalSms)); };
  for (int shares = 2; shares <= kMaxShares && shares <= plan.chunks; ++shares) {
    if (steps / shares < kMinSteps) break;
    if (8 * waves(shares) * plan.shares < 7 * waves(plan.shares) * shares) plan.shares = shares;
  }
  return plan;
}

}  // namespace wlib::atoms

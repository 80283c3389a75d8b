// How wlib::atoms_linear's kernel cuts its work up. Host and device; follows from sizes alone, so
// that the order of all sums does, too.
#pragma once

#include <cstdint>

namespace wlib::atoms {

constexpr int kLinearTokens = 64;  // wgmma's N
constexpr int kLinearRows = 128;   // of the weights: two consumers of wgmma's M
constexpr int kLinearAtoms = 128;  // of an item, whose coefficients are in shared memory
constexpr int kNominalSms = 132;
constexpr int kMinSteps = 16;  // tiles of an item: partial sums then cost little beside them
constexpr int kMaxShares = 16;

// An item is a block of rows for a block of tokens, and of the sum over columns and atoms a share
// of the columns and a block of atoms: its part.
struct LinearPlan {
  int token_blocks, row_blocks, atom_blocks;
  int chunks, shares;  // of columns: 128 bytes of an atom's row; and how they are shared out
  constexpr int parts() const { return atom_blocks * shares; }
  constexpr int64_t items() const { return int64_t(token_blocks) * row_blocks * parts(); }
};

// `summands` are the atoms and the tiles of the base, `chunk` the columns of a step. As few shares
// as fill the device well: one more has to save an eighth.
constexpr LinearPlan plan_linear(int64_t tokens, int64_t rows, int64_t columns, int64_t summands,
                                 int chunk) {
  const auto blocks = [](int64_t count, int64_t size) { return int((count + size - 1) / size); };
  LinearPlan plan{blocks(tokens, kLinearTokens), blocks(rows, kLinearRows),
                  blocks(summands, kLinearAtoms), blocks(columns, chunk), 1};
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

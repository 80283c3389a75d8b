// How wlib::atoms_linear's kernel cuts its work up. Host and device; follows from sizes alone, so
// that the order of all sums does, too.
#pragma once

#include <cstdint>

namespace wlib::atoms {

constexpr int kLinearTokens = 64;   // wgmma's N
constexpr int kLinearRows = 128;    // of the weights: two consumers of wgmma's M
constexpr int kLinearColumns = 64;  // 128 bytes of 16-bit elements
constexpr int kLinearAtoms = 128;   // of an item, whose coefficients are in shared memory
constexpr int kNominalSms = 132;
constexpr int kMinSteps = 16;  // tiles of an item: partial sums then cost little beside them
constexpr int kMaxShares = 16;

// An item is a block of rows for a block of tokens, and of the sum over columns and atoms a share
// of the columns and a block of atoms: its part.
struct LinearPlan {
  int token_blocks, row_blocks, atom_blocks, chunks;
  int shares;  // of the chunks of columns
  constexpr int parts() const { return atom_blocks * shares; }
  constexpr int64_t items() const { return int64_t(token_blocks) * row_blocks * parts(); }
};

// `atoms` includes the base. As few shares as let every wave of items fill the device best.
constexpr LinearPlan plan_linear(int64_t tokens, int64_t rows, int64_t columns, int64_t atoms) {
  const auto blocks = [](int64_t count, int64_t size) { return int((count + size - 1) / size); };
  LinearPlan plan{blocks(tokens, kLinearTokens), blocks(rows, kLinearRows),
                  blocks(atoms, kLinearAtoms), blocks(columns, kLinearColumns), 1};
  const int64_t tiles = plan.items(),
                steps = plan.chunks * (atoms < kLinearAtoms ? atoms : kLinearAtoms);
  const auto waves = [&](int64_t shares) { return blocks(tiles * shares, kNominalSms); };
  for (int shares = 2; shares <= kMaxShares && shares <= plan.chunks; ++shares) {
    if (steps / shares < kMinSteps) break;
    if (int64_t(waves(shares)) * plan.shares < int64_t(waves(plan.shares)) * shares)
      plan.shares = shares;
  }
  return plan;
}

}  // namespace wlib::atoms

// Every form by fused multiply-adds in float32, ranks in order, 16 at a time in shared memory.
#pragma once

#include "rebuild/sm90_rebuild.h"

namespace wlib::rebuild {

using sm90::kRun;

class FusedProducts {
  static constexpr int kRankStep = 16, kColumnGroups = kTileColumns / kRun;

 public:
  static constexpr int kResident = 1, kRowStep = 1;
  struct Smem {
    float a[kRankStep][kTileRows + 4];  // four columns apart in their banks
    // Columns 0-3 of every run, then columns 4-7: neighbouring threads read neighbouring quads.
    float b[kRankStep][kTileColumns];
  };
  WLIB_DEVICE static int row() { return sm90::thread_index() / kColumnGroups * kRowsPerThread; }
  WLIB_DEVICE static int column() { return sm90::thread_index() % kColumnGroups * kRun; }
  WLIB_DEVICE static FloatType base_type(const RebuildLayer& l) { return l.w0_type; }

  WLIB_DEVICE static void sum(Smem& s, const RebuildLayer& l, const RebuildView& view,
                              const RebuildTile& tile, Sums& sums) {
    const int row = tile.row + FusedProducts::row();
    const int column = tile.column + FusedProducts::column();
    const FloatType type = l.operand_type;
    WLIB_UNROLL
    for (auto& own : sums) {
      WLIB_UNROLL
      for (float& sum : own) sum = 0;
    }
    if (l.form == RebuildForm::kKron) {
      const Factor a = operand(l.a1, type, l.rows / l.rank1, l.columns / l.rank2);
      const Factor b = operand(l.b1, type, l.rank1, l.rank2);
      WLIB_UNROLL
      for (int i = 0; i < kRun; ++i) {
        const int block = (column + i) / l.rank2, inner = (column + i) % l.rank2;
        WLIB_UNROLL
        for (int r = 0; r < kRowsPerThread; ++r)
          sums[r][i] = a.at((row + r) / l.rank1, block) * b.at((row + r) % l.rank1, inner);
      }
      return;
    }
    if (l.form == RebuildForm::kBlockAffine) {
      const int64_t first = int64_t(tile.batch) * l.rank1 * l.rank1;
      Factor b = operand(l.b1, type, l.rank1, l.rank1);
      const int pieces = l.columns / l.rank1;  // of a row of w0
      WLIB_UNROLL
      for (int r = 0; r < kRowsPerThread; ++r) {
        WLIB_UNROLL
        for (int i = 0; i < kRun; ++i) {
          const bool inside = row + r < view.rows && column + i < view.columns;
          const int64_t at = first + int64_t((row + r) / pieces) * l.rank1 + column + i;
          sums[r][i] = inside ? sm90::load_float(b.data, type, at) : 0.0f;
        }
      }
      b.data = static_cast<const char*>(b.data) + first * (type == FloatType::kFloat32 ? 4 : 2);
      const void* base =
          static_cast<const char*>(l.w0) + tile.offset * (l.w0_type == FloatType::kFloat32 ? 4 : 2);
      const Factor a = {base, l.w0_type, l.rank1, 1, view.rows, l.rank1};
      return multiply(s, a, b, tile.row, tile.column, sums);
    }
    multiply(s, operand(l.a1, type, l.rows, l.rank1), operand(l.b1, type, l.rank1, l.columns),
             tile.row, tile.column, sums);
    if (l.form == RebuildForm::kLowRank) return;
    Sums second = {};
    multiply(s, operand(l.a2, type, l.rows, l.rank2), operand(l.b2, type, l.rank2, l.columns),
             tile.row, tile.column, second);
    WLIB_UNROLL
    for (int r = 0; r < kRowsPerThread; ++r) {
      WLIB_UNROLL
      for (int i = 0; i < kRun; ++i) sums[r][i] *= second[r][i];
    }
  }

 private:
  // Adds the product's tile at (row, column) to the thread's sums, ranks in order.
  WLIB_DEVICE static void multiply(Smem& s, const Factor& a, const Factor& b, int row, int column,
                                   Sums& sums) {
    const int thread = sm90::thread_index(), own_row = FusedProducts::row();
    const int group = thread % kColumnGroups;
    for (int rank = 0; rank < a.columns; rank += kRankStep) {
      sm90::block_sync();  // the last step's reads
      for (int i = thread; i < kTileRows * kRankStep; i += kRebuildThreads)
        s.a[i % kRankStep][i / kRankStep] = a.at(row + i / kRankStep, rank + i % kRankStep);
      for (int i = thread; i < kTileColumns * kRankStep; i += kRebuildThreads) {
        const int c = i % kTileColumns, k = i / kTileColumns;
        s.b[k][c % kRun / 4 * (kTileColumns / 2) + c / kRun * 4 + c % 4] =
            b.at(rank + k, column + c);
      }
      sm90::block_sync();
      WLIB_UNROLL
      for (int k = 0; k < kRankStep; ++k) {
        struct alignas(16) Four {
          float value[4];
        };
        const Four left = *reinterpret_cast<const Four*>(&s.a[k][own_row]);
        const Four low = *reinterpret_cast<const Four*>(&s.b[k][group * 4]);
        const Four high = *reinterpret_cast<const Four*>(&s.b[k][kTileColumns / 2 + group * 4]);
        WLIB_UNROLL
        for (int r = 0; r < kRowsPerThread; ++r) {
          WLIB_UNROLL
          for (int i = 0; i < 4; ++i) {
            sums[r][i] = fmaf(left.value[r], low.value[i], sums[r][i]);
            sums[r][4 + i] = fmaf(left.value[r], high.value[i], sums[r][4 + i]);
          }
        }
      }
    }
  }
};

}  // namespace wlib::rebuild

// Low rank and hadamard forms by tensor cores, for 16-bit bases and results: each operand is split
// into the BF16 number next to it and the BF16 number next to what is left; three products (one if
// the operand is BF16) leave out less than 3 * 2^-16 of a term. Two CTAs per SM.
#pragma once

#include "rebuild/sm90_rebuild.h"
#include "wlib/sm90/convert.h"
#include "wlib/sm90/mma.h"

namespace wlib::rebuild {

using sm90::kRun;

class TensorProducts {
  static constexpr int kRanks = 32, kStep = 16;  // in shared memory, of an instruction
  static constexpr int kWarpRows = 32, kWarpColumns = 32;
  static constexpr int kWarpsAcross = kTileColumns / kWarpColumns;

 public:
  static constexpr int kResident = 2, kRowStep = 8;
  struct Smem {  // of factors high and low parts; eight rows are read at a time, all banks apart
    sm90::Quad a[2][kTileRows][kRanks / 8 + 1];
    alignas(16) uint32_t b[2][kRanks][kTileColumns / 2 + 12];  // pairs, at b_pair
    float first[kRowsPerThread * kRun][kRebuildThreads];       // product of hadamard, each thread's
  };
  WLIB_DEVICE static int row() { return warp_row() + sm90::lane_index() / 4; }
  WLIB_DEVICE static int column() { return warp_column() + sm90::lane_index() % 4 * kRun; }
  // Said so that the compiler sees 16 bits.
  WLIB_DEVICE static FloatType base_type(const RebuildLayer& l) {
    return l.w0_type == FloatType::kBFloat16 ? FloatType::kBFloat16 : FloatType::kFloat16;
  }

  WLIB_DEVICE static void sum(Smem& s, const RebuildLayer& l, const RebuildView&,
                              const RebuildTile& tile, Sums& sums) {
    const FloatType type = l.operand_type;
    Accumulators products = {};
    multiply(s, operand(l.a1, type, l.rows, l.rank1), operand(l.b1, type, l.rank1, l.columns), tile,
             products);
    if (l.form == RebuildForm::kHadamard) {
      // In registers, there would be only one CTA per SM.
      WLIB_UNROLL
      for (int i = 0; i < kRowsPerThread * kRun; ++i) {
        s.first[i][sm90::thread_index()] = at(products, i);
        at(products, i) = 0;
      }
      multiply(s, operand(l.a2, type, l.rows, l.rank2), operand(l.b2, type, l.rank2, l.columns),
               tile, products);
      WLIB_UNROLL
      for (int i = 0; i < kRowsPerThread * kRun; ++i)
        at(products, i) *= s.first[i][sm90::thread_index()];
    }
    WLIB_UNROLL
    for (int i = 0; i < kRowsPerThread * kRun; ++i) sums[i / kRun][i % kRun] = at(products, i);
  }

 private:
  using Accumulators = float[2][4][4];  // of a warp's tile of 2 x 4 instructions

  WLIB_DEVICE static int warp_row() {
    return sm90::thread_index() / sm90::kWarpThreads / kWarpsAcross * kWarpRows;
  }
  WLIB_DEVICE static int warp_column() {
    return sm90::thread_index() / sm90::kWarpThreads % kWarpsAcross * kWarpColumns;
  }
  // Where the pair of columns 2 j, 2 j + 1 of a run lies in b, so that the four instructions of a
  // row give a thread one run: instruction j its pair j. A gap in the middle keeps the banks of the
  // 16 runs that are stored at a time apart.
  WLIB_DEVICE static int b_pair(int run, int j) {
    return run / 4 * 16 + run / 8 * 8 + j * 4 + run % 4;
  }
  WLIB_DEVICE static float& at(Accumulators& d, int i) {
    const int row = i / kRun, column = i % kRun;
    return d[row / 2][column / 2][row % 2 * 2 + column % 2];
  }

  // Adds the product's tile to d, 16 ranks after the other.
  WLIB_DEVICE static void multiply(Smem& s, const Factor& a, const Factor& b,
                                   const RebuildTile& tile, Accumulators& d) {
    const bool split = a.type != FloatType::kBFloat16;
    for (int rank = 0; rank < a.columns; rank += kRanks) {
      sm90::block_sync();  // the last step's reads
      const auto store_a = [&s](int part, int row, int run, const uint32_t(&pairs)[4]) {
        s.a[part][row][run] = {{pairs[0], pairs[1], pairs[2], pairs[3]}};
      };
      const auto store_b = [&s](int part, int k, int run, const uint32_t(&pairs)[4]) {
        WLIB_UNROLL
        for (int j = 0; j < 4; ++j) s.b[part][k][b_pair(run, j)] = pairs[j];
      };
      stage<kTileRows, kRanks / kRun>(a, tile.row, rank, split, store_a);
      stage<kRanks, kTileColumns / kRun>(b, rank, tile.column, split, store_b);
      sm90::block_sync();
      WLIB_UNROLL
      for (int k = 0; k < kRanks; k += kStep) {
        if (rank + k >= a.columns) break;
        if (split)
          add_step<true>(s, k, d);
        else
          add_step<false>(s, k, d);
      }
    }
  }

  // Splits kOuter rows of kRuns runs, from (row, column) of a factor on, zeros outside; store gets
  // the pairs of a run, of part 0, high, and of part 1, low, if asked.
  template <int kOuter, int kRuns, class Store>
  WLIB_DEVICE static void stage(const Factor& f, int row, int column, bool split, Store store) {
    constexpr int kCount = kOuter * kRuns / kRebuildThreads;
    int rows[kCount], runs[kCount];
    float values[kCount][kRun];
    WLIB_UNROLL
    for (int c = 0; c < kCount; ++c) {
      // Neighbouring threads take neighbouring elements, whichever way the factor lies.
      const int i = sm90::thread_index() + c * kRebuildThreads;
      rows[c] = f.column_stride == 1 ? i / kRuns : i % kOuter;
      runs[c] = f.column_stride == 1 ? i % kRuns : i / kOuter;
    }
    if (in_runs(f)) {
      const void* from[kCount];
      bool inside[kCount];
      WLIB_UNROLL
      for (int c = 0; c < kCount; ++c) {  // all loads without a branch: what is outside reads less
        const int r = row + rows[c], first = column + runs[c] * kRun;
        inside[c] = r < f.rows && first < f.columns;
        const int64_t at = inside[c] ? r * f.row_stride + first : 0;
        from[c] = static_cast<const char*>(f.data) + at * (f.type == FloatType::kFloat32 ? 4 : 2);
      }
      sm90::load_whole_runs(from, f.type, values);
      WLIB_UNROLL
      for (int i = 0; i < kCount * kRun; ++i)
        values[i / kRun][i % kRun] = inside[i / kRun] ? values[i / kRun][i % kRun] : 0.0f;
    } else {
      WLIB_UNROLL
      for (int i = 0; i < kCount * kRun; ++i) {
        const int c = i / kRun;
        values[c][i % kRun] = f.at(row + rows[c], column + runs[c] * kRun + i % kRun);
      }
    }
    WLIB_UNROLL
    for (int c = 0; c < kCount; ++c) {
      uint32_t high[4], low[4];
      WLIB_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float x = values[c][2 * j], y = values[c][2 * j + 1];
        high[j] = sm90::pack_bf16x2(x, y);
        low[j] = sm90::pack_bf16x2(x - sm90::bf16x2_low(high[j]), y - sm90::bf16x2_high(high[j]));
      }
      store(0, rows[c], runs[c], high);
      if (split) store(1, rows[c], runs[c], low);
    }
  }
  // Whether every run of a factor is whole, at a multiple of 16 bytes.
  WLIB_DEVICE static bool in_runs(const Factor& f) {
    return f.column_stride == 1 && f.row_stride % kRun == 0 && sm90::whole_runs(f.data, f.columns);
  }

  // Adds the product of the ranks k to k + 15 in shared memory, smaller parts first.
  template <bool kSplit>
  WLIB_DEVICE static void add_step(const Smem& s, int k, Accumulators& d) {
    uint32_t high[2][4], a[2][4];
    load_b(s, 0, k, 0, high[0]);
    load_b(s, 0, k, 1, high[1]);
    if constexpr (kSplit) {
      load_a(s, 1, k, a);
      add_products(a, high[0], 0, d);
      add_products(a, high[1], 1, d);
    }
    load_a(s, 0, k, a);
    WLIB_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      if constexpr (kSplit) {
        uint32_t low[4];
        load_b(s, 1, k, pair, low);
        add_products(a, low, pair, d);
      }
      add_products(a, high[pair], pair, d);
    }
  }
  WLIB_DEVICE static void load_a(const Smem& s, int part, int k, uint32_t (&a)[2][4]) {
    const int lane = sm90::lane_index();
    WLIB_UNROLL
    for (int m = 0; m < 2; ++m) {
      const int row = warp_row() + m * 16 + lane % 16;
      sm90::load_matrices(a[m], &s.a[part][row][k / 8 + lane / 16]);
    }
  }
  // For two neighbouring instructions.
  WLIB_DEVICE static void load_b(const Smem& s, int part, int k, int pair, uint32_t (&b)[4]) {
    const int lane = sm90::lane_index(), first = b_pair(warp_column() / kRun, pair * 2 + lane / 16);
    sm90::load_matrices_transposed(b, &s.b[part][k + lane % 16][first]);
  }
  WLIB_DEVICE static void add_products(const uint32_t (&a)[2][4], const uint32_t (&b)[4], int pair,
                                       Accumulators& d) {
    WLIB_UNROLL
    for (int n = 0; n < 2; ++n) {
      const uint32_t half[2] = {b[2 * n], b[2 * n + 1]};
      WLIB_UNROLL
      for (int m = 0; m < 2; ++m) sm90::mma_bf16(d[m][pair * 2 + n], a[m], half);
    }
  }
};

}  // namespace wlib::rebuild

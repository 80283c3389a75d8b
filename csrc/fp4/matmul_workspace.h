// What the CUDA kernels of fp4_matmul keep beside the operands while packed codes are multiplied.
// No CUDA.
#pragma once

#include "wlib/params/fp4.h"

namespace wlib::fp4 {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int kArrangedRows = 32;   // per CTA that arranges scales
constexpr int kRowAlignment = 256;  // a tile of either operand never reads beyond
constexpr int64_t padded_rows(int64_t rows) {
  return ceil_div(rows, kRowAlignment) * kRowAlignment;
}

// Of a and of b.
struct Workspace {
  uint8_t* folded[2];   // [k / 128, padded rows, 4] FoldedCodes::Scale
  float* row_scale[2];  // [rows]
  uint16_t* bf16[2];    // [k / 64, padded rows, 4] scales in BF16
  uint8_t* wide;        // [flags] whether scales of some row span more than a carrier can
  int64_t flags;
  int64_t bytes;  // of all

  // Without a base: only how many bytes there are.
  static Workspace of(const MatmulParams& p, uint8_t* base = nullptr) {
    Workspace w{};
    const auto take = [&]<class T>(T*& pointer, int64_t count) {
      pointer = reinterpret_cast<T*>(uintptr_t(base) + uintptr_t(w.bytes));
      w.bytes += ceil_div(count * int64_t(sizeof(T)), 128) * 128;
    };
    const bool fold = p.mode == MatmulMode::kFold8;
    const int64_t rows[2] = {padded_rows(p.a.rows), padded_rows(p.b.rows)};
    for (int i = 0; i < 2; ++i) {
      take(w.folded[i], fold ? ceil_div(p.k, 128) * rows[i] * 4 : 0);
      take(w.row_scale[i], fold ? rows[i] : 0);
      take(w.bf16[i], ceil_div(p.k, 64) * rows[i] * 4);
    }
    w.flags = (rows[0] + rows[1]) / kArrangedRows;
    take(w.wide, w.flags);
    return w;
  }
};

}  // namespace wlib::fp4

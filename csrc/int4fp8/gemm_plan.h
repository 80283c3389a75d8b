// Which kernel serves more than 64 tokens. Host only, no CUDA: a pure function of the shape and the
// number of SMs.
#pragma once

#include <cstdint>

#include "int4fp8/decode_plan.h"
#include "wlib/layout/int4_tile.h"

namespace wlib::int4fp8 {

// Cycles in which the tensor cores of an SM multiply 64 rows x 128 columns with 128 tokens; the
// estimates below count in these and add what is not hidden behind them.
constexpr int64_t kSlabCycles = 256;

// The cooperative kernel, tiles of 128 * slabs rows x 128 tokens.
constexpr int64_t cooperative_cost(int64_t m, int64_t n, int64_t k, int slabs, int sms) {
  constexpr int64_t kEpilogueCycles = 1000;  // per slab
  const int64_t tiles = int4::ceil_div(n, 128 * slabs) * int4::ceil_div(m, 128);
  const int64_t k_tiles = int4::ceil_div(k, int4::kTileColumns);
  return int4::ceil_div(tiles, sms) * slabs * (k_tiles * 2 * kSlabCycles + kEpilogueCycles);
}

// The decode kernel, blocks of 64 tokens: a tile takes half as long per pass, but it makes two.
inline int64_t decode_cost_in_blocks(int64_t m, int64_t n, int64_t k, int sms) {
  const auto resident = [&](int split, int* clusters) {
    *clusters = sms / split;
    return 0;
  };
  const int64_t k_tiles = int4::ceil_div(k, int4::kTileColumns);
  const int64_t row_blocks = int4::ceil_div(n, int4::kTileRows);
  DecodePlan plan;
  plan_decode(int(row_blocks), int(k_tiles), 64, resident, &plan);
  const int64_t rounds = int4::ceil_div(row_blocks * int4::ceil_div(m, 64), plan.clusters);
  return rounds * ((k_tiles >> plan.split_log2) + 2) * kSlabCycles;
}

enum class LargeKernel { kCooperative1, kCooperative2, kDecode };

// With experts, half of a token tile of each is taken to be empty.
inline LargeKernel plan_large(int64_t m, int64_t n, int64_t k, int sms, int64_t experts = 0) {
  const int64_t decode = decode_cost_in_blocks(m + experts * 32, n, k, sms);
  const int64_t tokens = m + experts * 64;
  const int64_t one = cooperative_cost(tokens, n, k, 1, sms),
                two = cooperative_cost(tokens, n, k, 2, sms);
  if (two <= one && two <= decode) return LargeKernel::kCooperative2;
  return one <= decode ? LargeKernel::kCooperative1 : LargeKernel::kDecode;
}

// By how many tokens the first row of the dispatch table is chosen: an expert with twice as many as
// the average still reads its weights once.
constexpr int64_t planned_tokens(int64_t m, int64_t experts) {
  return experts ? int4::ceil_div(2 * m, experts) : m;
}

}  // namespace wlib::int4fp8

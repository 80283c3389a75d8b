// Which kernel serves more than 64 tokens. Host only, no CUDA: a pure function of the shape and the
// number of SMs.
#pragma once

#include <cstdint>
#include <string>

#include "int4fp8/decode_plan.h"
#include "wlib/layout/int4_tile.h"

namespace wlib::int4fp8 {

// What reaches an SM from the L2 in a cycle while all fetch; assumed, half of its port.
constexpr int64_t kL2BytesPerCycle = 32;

// A CTA's k tile takes as long as the tensor cores or as its fetches, whichever is longer; what
// ends a tile comes on top, unless the next tile runs meanwhile. All are counts, none has been
// measured.
struct LargeTile {
  const char* name;
  int rows, tokens;  // of a tile
  int ctas;          // with neighbouring rows, in a cluster
  int64_t bytes;     // from the L2 per CTA and k tile, groups of 128
  int64_t end;       // cycles: outputs
  bool end_hidden;

  // 8192 FP8 operations per cycle and SM.
  constexpr int64_t tensor_cycles() const { return int64_t(rows) * tokens * 2 * 128 / 8192; }
  constexpr int64_t k_tile_cycles() const {
    const int64_t fetch = bytes / kL2BytesPerCycle;
    return tensor_cycles() > fetch ? tensor_cycles() : fetch;
  }
  constexpr int64_t cost(int64_t m, int64_t n, int64_t k, int sms) const {
    const int64_t tiles = int4::ceil_div(n, rows * ctas) * int4::ceil_div(m, tokens);
    const int64_t rounds = int4::ceil_div(tiles, sms / ctas);
    const int64_t k_tiles = int4::ceil_div(k, int4::kTileColumns);
    return rounds * k_tiles * k_tile_cycles() + (end_hidden ? 1 : rounds) * end;
  }
};
constexpr int64_t kLargeTileBytes = int4::Layout{1, false}.tile_bytes();
constexpr LargeTile kPingPong = {
    "128x128 ping-pong", 128, 128, 1, 2 * kLargeTileBytes + 128 * 128, 2000, true};
constexpr LargeTile kPairs = {
    "256x128 in pairs", 256, 128, 2, 4 * kLargeTileBytes + 64 * 128, 2000, false};

// The decode kernel, blocks of 64 tokens.
constexpr int64_t kDecodeCycles = (kLargeTileBytes + 64 * 128) / kL2BytesPerCycle;  // per k tile
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
  return rounds * ((k_tiles >> plan.split_log2) + 2) * kDecodeCycles;
}

enum class LargeKernel { kPingPong, kPairs, kDecode };

// With experts, half of a token tile of each is taken to be empty.
inline LargeKernel plan_large(int64_t m, int64_t n, int64_t k, int sms, int64_t experts = 0) {
  const int64_t decode = decode_cost_in_blocks(m + experts * 32, n, k, sms);
  const int64_t tokens = m + experts * 64;
  const int64_t one = kPingPong.cost(tokens, n, k, sms), two = kPairs.cost(tokens, n, k, sms);
  if (sms > 1 && two <= one && two <= decode) return LargeKernel::kPairs;
  return one <= decode ? LargeKernel::kPingPong : LargeKernel::kDecode;
}

constexpr const char* large_kernel_name(LargeKernel kernel) {
  switch (kernel) {
    case LargeKernel::kPingPong: return kPingPong.name;
    case LargeKernel::kPairs: return kPairs.name;
    default: return "decode in blocks of 64";
  }
}

// The choice for the layers of Llama-3 8B and 70B, one line per M, N, K.
inline std::string large_plan_table(int sms) {
  constexpr int64_t kTokens[] = {128, 512, 2048, 8192};
  constexpr int64_t kShapes[][2] = {{6144, 4096},  {4096, 4096}, {28672, 4096}, {4096, 14336},
                                    {10240, 8192}, {8192, 8192}, {57344, 8192}, {8192, 28672}};
  std::string text;
  for (const auto [n, k] : kShapes) {
    for (const int64_t m : kTokens) {
      text += "M = " + std::to_string(m) + ", N = " + std::to_string(n) +
              ", K = " + std::to_string(k) + ": " + large_kernel_name(plan_large(m, n, k, sms)) +
              "\n";
    }
  }
  return text;
}

// By how many tokens the first row of the dispatch table is chosen: an expert with twice as many as
// the average still reads its weights once.
constexpr int64_t planned_tokens(int64_t m, int64_t experts) {
  return experts ? int4::ceil_div(2 * m, experts) : m;
}

}  // namespace wlib::int4fp8

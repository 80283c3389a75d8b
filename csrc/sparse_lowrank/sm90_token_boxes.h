// Tiles of 16-bit activations in shared memory as the tensor cores read them: boxes of 64 columns,
// a token per row of 128 bytes, swizzled. The tensor memory accelerator brings them; of rows that
// it does not take (not at 16-byte boundaries) the producer's threads do.
#pragma once

#include "wlib/sm90/cluster.h"
#include "wlib/sm90/ring.h"
#include "wlib/sm90/runs.h"
#include "wlib/sm90/tensor_map.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::sparse_lowrank {

using sm90::kRun;

constexpr int kBoxColumns = 64, kBoxRowBytes = 128;

// The products on the tensor cores: two consumer warpgroups, each with 64 rows of an output tile of
// 128 x 256, and a producer warpgroup.
constexpr int kMmaConsumers = 2, kMmaRows = 64, kMmaColumns = 256;
constexpr int kMmaThreads = (kMmaConsumers + 1) * sm90::kWarpgroupThreads;
constexpr int kMmaReaders = kMmaConsumers * 4;  // warps per stage
constexpr int kMmaWriters = 1 + 4;              // bytes expected, and the producer's warps
constexpr int kMmaProducerRegs = 80;
constexpr int kMmaConsumerRegs = sm90::consumer_registers(kMmaConsumers, kMmaProducerRegs);
constexpr int kProducerBarrier = 1, kSumsBarrier = 2;  // and the next one
using MmaSums = float[kMmaColumns / 2];

template <FloatType kType>
using WideMma = std::conditional_t<kType == FloatType::kBFloat16, sm90::WgmmaBF16<kMmaColumns>,
                                   sm90::WgmmaF16<kMmaColumns>>;

// Byte of a swizzled box.
WLIB_DEVICE int swizzled_byte(int row, int byte) {
  return row * kBoxRowBytes + (byte ^ row % 8 * 16);
}

// Rows of 16-bit activations in global memory.
struct TokenSource {
  sm90::TensorMap map;  // if `mapped`: of boxes of 64 columns
  const void* data;
  int64_t stride, tokens;
  int columns;
  bool mapped;
};
// False if the driver refuses the tensor map.
inline bool make_token_source(const void* data, int64_t stride, int64_t tokens, int columns,
                              int box_tokens, TokenSource* to) {
  to->data = data;
  to->stride = stride;
  to->tokens = tokens;
  to->columns = columns;
  to->mapped = stride % 8 == 0 && stride >= columns && tokens > 0 &&
               reinterpret_cast<uintptr_t>(data) % 16 == 0;
  if (!to->mapped) return true;
  const sm90::MatrixTiles tiles{data,
                                uint64_t(tokens),
                                uint64_t(columns),
                                uint64_t(stride) * 2,
                                uint32_t(box_tokens),
                                kBoxColumns,
                                2};
  return sm90::make_tensor_map(&to->map, tiles);
}

// kTokens tokens of kBoxes * 64 columns; zeros outside of the rows.
template <int kTokens, int kBoxes>
struct TokenBoxes {
  static constexpr int kBoxBytes = kTokens * kBoxRowBytes;
  uint8_t box[kBoxes][kBoxBytes];

  // Bytes that the copies of load() bring.
  WLIB_DEVICE static int copied(const TokenSource& from) {
    return from.mapped ? kBoxes * kBoxBytes : 0;
  }
  // By all threads of the producer warpgroup; without a map, their writes need a fence.
  WLIB_DEVICE void load(const TokenSource& from, int64_t token, int column, uint64_t& full) {
    if (!from.mapped) return copy(from, token, column);
    if (sm90::thread_in_warpgroup() != 0) return;
    WLIB_UNROLL
    for (int b = 0; b < kBoxes; ++b)
      sm90::tensor_load_2d(box[b], from.map, column + b * kBoxColumns, int(token), full);
  }
  // Of a pair of CTAs that need the same, each fetches half of the boxes for both.
  WLIB_DEVICE void load_shared(const TokenSource& from, int64_t token, int column, int rank,
                               uint64_t& full) {
    if (!from.mapped) return copy(from, token, column);
    if (sm90::thread_in_warpgroup() != 0) return;
    WLIB_UNROLL
    for (int i = 0; i < kBoxes / 2; ++i) {
      const int b = rank * (kBoxes / 2) + i;
      sm90::tensor_load_2d_multicast(box[b], from.map, column + b * kBoxColumns, int(token), full,
                                     0b11);
    }
  }

 private:
  WLIB_DEVICE void copy(const TokenSource& from, int64_t token, int column) {
    constexpr int kPieces = kBoxRowBytes / 16;  // of a row
    const auto* data = static_cast<const uint16_t*>(from.data);
    WLIB_NO_UNROLL
    for (int i = sm90::thread_in_warpgroup(); i < kBoxes * kTokens * kPieces;
         i += sm90::kWarpgroupThreads) {
      const int b = i / (kTokens * kPieces), row = i / kPieces % kTokens, piece = i % kPieces;
      const int at = column + b * kBoxColumns + piece * kRun;
      const int count = token + row < from.tokens ? from.columns - at : 0;
      sm90::Quad to{};
      WLIB_UNROLL
      for (int c = 0; c < kRun; ++c) {
        if (c >= count) break;
        const uint32_t bits = data[(token + row) * from.stride + at + c];
        to.word[c / 2] |= bits << c % 2 * 16;
      }
      *reinterpret_cast<sm90::Quad*>(box[b] + swizzled_byte(row, piece * 16)) = to;
    }
  }
};

}  // namespace wlib::sparse_lowrank

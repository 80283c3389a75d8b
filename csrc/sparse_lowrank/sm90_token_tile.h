// A tile of 128 float32 tokens x 128 columns in shared memory, column by column: a warp reads a
// column with four tokens per lane. Global memory holds tokens one after the other, so tiles are
// transposed on their way through registers.
#pragma once

#include <cmath>

#include "wlib/params/sparse_lowrank.h"
#include "wlib/sm90/runs.h"

namespace wlib::sparse_lowrank {

constexpr int kTileTokens = 128, kLaneTokens = 4;
constexpr int kTileThreads = 512;  // of the CTAs that use these tiles

// Rows of float32 tokens in global memory.
struct TokenRows {
  const void* data;
  int64_t stride, tokens;
  int columns;
};

struct TokenTile {
  static constexpr int kPieceColumns = 4;
  static constexpr int kPiecesPerToken = kSparseTile / kPieceColumns;
  static constexpr int kPieces = kTileTokens / kLaneTokens * kPiecesPerToken / kTileThreads;

  // A column's values for four tokens.
  struct alignas(16) Chunk {
    float token[kLaneTokens];
  };
  // 16 bytes of four tokens each.
  struct Piece {
    sm90::Quad token[kLaneTokens];
  };

  Chunk chunk[kSparseTile * sm90::kWarpThreads];

  // A lane's chunk of a column is number where(column) ^ lane: columns of neighbouring pieces lie
  // apart in their banks, so that a warp writes a row of pieces without conflicts.
  WLIB_DEVICE static int where(int column) {
    return column * sm90::kWarpThreads + column / kPieceColumns;
  }

  // One piece after the other, which takes fewer registers than all at once.
  WLIB_DEVICE void copy(const TokenRows& rows, int64_t token, int column) {
    WLIB_NO_UNROLL
    for (int i = 0; i < kPieces; ++i) {
      Piece piece;
      load(rows, token, column, i, piece);
      store(i, piece);
    }
  }

 private:
  // The thread's piece number i of the tile at (token, column), zeros outside of the rows.
  WLIB_DEVICE static void load(const TokenRows& rows, int64_t token, int column, int i,
                               Piece& piece) {
    const bool aligned =
        rows.stride % kPieceColumns == 0 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
    const auto* data = static_cast<const uint32_t*>(rows.data);
    const int index = sm90::thread_index() + i * kTileThreads;
    const int64_t first = token + index / kPiecesPerToken * kLaneTokens;
    const int at = column + index % kPiecesPerToken * kPieceColumns;
    WLIB_UNROLL
    for (int t = 0; t < kLaneTokens; ++t) {
      const int count = first + t < rows.tokens ? rows.columns - at : 0;
      const uint32_t* from = data + (first + t) * rows.stride + at;
      if (aligned && count >= kPieceColumns) {
        piece.token[t] = *reinterpret_cast<const sm90::Quad*>(from);
        continue;
      }
      WLIB_UNROLL
      for (int c = 0; c < kPieceColumns; ++c) piece.token[t].word[c] = c < count ? from[c] : 0;
    }
  }
  WLIB_DEVICE void store(int i, const Piece& piece) {
    const int index = sm90::thread_index() + i * kTileThreads;
    const int lane = index / kPiecesPerToken, at = index % kPiecesPerToken * kPieceColumns;
    WLIB_UNROLL
    for (int c = 0; c < kPieceColumns; ++c) {
      Chunk& to = chunk[where(at + c) ^ lane];
      WLIB_UNROLL
      for (int t = 0; t < kLaneTokens; ++t)
        to.token[t] = __builtin_bit_cast(float, piece.token[t].word[c]);
    }
  }
};

}  // namespace wlib::sparse_lowrank

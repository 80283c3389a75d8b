// What the kernels of wlib::atoms_linear get, and how it follows from the op's parameters.
#pragma once

#include "atoms/linear_plan.h"
#include "wlib/params/atoms_linear.h"
#include "wlib/sm90/tensor_map.h"

namespace wlib::atoms {

struct LinearKernelParams {
  // 128-byte swizzle, zeros outside: x [tokens, columns] in boxes of a tile's tokens x 128 bytes,
  // atoms [num_atoms * rows, columns] and base [rows, columns] in boxes of its rows x 128 bytes.
  sm90::TensorMap x, atoms, base;
  const uint8_t* packed;  // INT4 atoms, instead of `atoms`
  int int4_groups;
  const float* coef;  // of token m and atom s at m * coef_stride + s
  float* partials;    // [parts, tokens, rows]
  int tokens, rows;
  int num_atoms, summands;  // without and with the tiles of the base
  int coef_stride;
  LinearPlan plan;
};

struct LinearSumParams {
  const float* partials;  // [parts, tokens, rows]
  const void* bias;       // [rows] of type, or null
  void* out;              // [tokens, rows] of type
  int64_t outputs;        // tokens * rows
  int rows, parts;
  FloatType type;
};

constexpr int kTileBytes = 128;               // of a row of a tile
constexpr int kTileColumns = kTileBytes / 2;  // of 16-bit elements
inline LinearTile linear_tile(const LinearParams& p) {
  return p.int4_groups                     ? kLinear4Tile
         : p.atom_type == FloatType::kE4M3 ? kLinear8Tile
                                           : kLinear16Tile;
}
// Beside atoms of fewer bits, the base takes as many tiles as the activations.
inline int64_t linear_summands(const LinearParams& p) {
  return p.num_atoms + (p.base ? linear_tile(p).columns / kTileColumns : 0);
}
inline LinearPlan linear_plan(const LinearParams& p) {
  return plan_linear(p.tokens, p.rows, p.columns, linear_summands(p), linear_tile(p));
}

// False if the driver refuses a tensor map.
inline bool make_linear_params(const LinearParams& p, float* partials, LinearKernelParams* to) {
  const auto tiles = [&](const void* base, FloatType type, int64_t rows, int box_rows) {
    const auto bytes = uint32_t(bytes_of(type));
    sm90::MatrixTiles tiles{};
    tiles.base = base;
    tiles.rows = uint64_t(rows);
    tiles.columns = uint64_t(p.columns);
    tiles.row_stride_bytes = uint64_t(p.columns) * bytes;
    tiles.box_rows = uint32_t(box_rows);
    tiles.box_columns = kTileBytes / bytes;
    tiles.element_bytes = bytes;
    return tiles;
  };
  const int64_t atom_rows = p.num_atoms * p.rows;
  to->packed = p.int4_groups ? static_cast<const uint8_t*>(p.atoms) : nullptr;
  to->int4_groups = p.int4_groups;
  to->coef = static_cast<const float*>(p.coef);
  to->partials = partials;
  to->tokens = int(p.tokens);
  to->rows = int(p.rows);
  to->num_atoms = int(p.num_atoms);
  to->summands = int(linear_summands(p));
  to->coef_stride = p.coef_per_token ? int(p.num_atoms) : 0;
  to->plan = linear_plan(p);
  return sm90::make_tensor_map(&to->x, tiles(p.x, p.type, p.tokens, linear_tile(p).tokens)) &&
         (p.int4_groups || sm90::make_tensor_map(&to->atoms, tiles(p.atoms, p.atom_type, atom_rows,
                                                                   linear_tile(p).rows))) &&
         (!p.base ||
          sm90::make_tensor_map(&to->base, tiles(p.base, p.type, p.rows, linear_tile(p).rows)));
}

inline LinearSumParams make_linear_sum(const LinearParams& p, const float* partials) {
  return {partials, p.bias, p.out, p.tokens * p.rows, int(p.rows), linear_plan(p).parts(), p.type};
}

}  // namespace wlib::atoms

// What wlib::atoms_linear hands to its kernels, CPU and CUDA alike. Filled in one place,
// csrc/atoms/linear.cpp, after every argument has been checked.
#pragma once

#include <cstdint>

#include "wlib/params/float_type.h"

namespace wlib::atoms {

// out[m] = (base + sum_s c[m, s] atoms[s]) x[m] + bias
//
// with c[m, s] = coef[s], or coef[m, s] with coefficients per token. Sums are made in float32, or
// in float64 for float64 x; the result is rounded once. All arrays are contiguous.
struct LinearParams {
  const void* x;      // [tokens, columns] of type
  const void* atoms;  // [num_atoms, rows, columns] of atom_type, or packed
  const void* coef;   // [num_atoms] or [tokens, num_atoms]; float32, or float64 for float64 x
  const void* base;   // [rows, columns] of type, or null
  const void* bias;   // [rows] of type, or null
  void* out;          // [tokens, rows] of type
  int64_t tokens, rows, columns, num_atoms;
  bool coef_per_token;
  // INT4 atoms, one after the other as in layout/int4_tile.h, without zero points: how many groups
  // share a tile. 0: atoms are of atom_type.
  int int4_groups;
  FloatType type, atom_type;  // of atoms also kE4M3
};

}  // namespace wlib::atoms

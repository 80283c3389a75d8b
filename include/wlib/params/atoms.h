// What the ops on shared atoms hand to their kernels, CPU and CUDA alike. Filled in one place,
// csrc/atoms/reconstruct.cpp and combine.cpp, after every argument has been checked.
#pragma once

#include "wlib/numerics/optimizer.h"
#include "wlib/params/float_type.h"

namespace wlib::atoms {

// out[l][i] = base[l][i] + scale * sum_s coef[l, s] * atom[s][i] + (a[l] b[l])[i]
//
// i counts rows x columns elements. Sums are made in float32, or in float64 if the atoms are
// float64; the result is rounded once.
struct ReconstructParams {
  const void* const* atom;  // [num_atoms] pointers to [rows, columns] of atom_type
  void* const* out;         // [num_layers] pointers to [rows, columns] of out_type
  const void* coef;         // [num_layers, num_atoms] or, per row, [num_layers, num_atoms, rows]
  const void* base;         // [num_layers, rows, columns] of base_type, or null
  const void* a;            // [num_layers, rows, rank] of residual_type, or null
  const void* b;            // [num_layers, rank, columns] of residual_type, or null
  int64_t num_layers, num_atoms, rows, columns, rank;
  double scale;
  bool coef_per_row;
  FloatType atom_type, base_type, residual_type, out_type;
};

// What becomes of the gradients of the atoms: one step of an optimiser, in place.
struct AtomsUpdate {
  UpdateRule rule;  // kNone: grad_atoms is stored
  UpdateFactors<double> factors;
  void* atoms;           // those of the sums
  void *first, *second;  // moments, like atoms but of their own type; Lion has no second
  FloatType first_type, second_type;
};

// grad_atoms[s][i] = scale * sum_l coef[l, s] * grad[l][i]
// grad_coef[l, s] = scale * sum_i grad[l][i] * atom[s][i], per row if coef is
//
// The order of both sums depends on the sizes alone, so that results are reproducible.
//
// With an update, grad_atoms is not written: it goes into the atoms and their moments at once, and
// grad_coef is that of the atoms before it.
struct ReconstructBackwardParams {
  const void* grad;   // [num_layers, rows, columns] of grad_type
  const void* atoms;  // [num_atoms, rows, columns] of atom_type
  const void* coef;   // as in ReconstructParams
  void* grad_atoms;   // like atoms, or null
  void* grad_coef;    // like coef
  float* partials;    // CUDA: [partial_items() of its launcher, num_layers, num_atoms]
  int64_t num_layers, num_atoms, rows, columns;
  double scale;
  bool coef_per_row;
  FloatType grad_type, atom_type;
  AtomsUpdate update;
};

// The second stage of a sum over the whole device, from partial sums of chunks:
// out[i * rows + row] = scale * sum_chunk partials[row, chunk, i]
struct FinishParams {
  const float* partials;  // [rows, chunks, count]
  float* out;             // [count, rows]
  int64_t rows, chunks, count;
  double scale;
};

}  // namespace wlib::atoms

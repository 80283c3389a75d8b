// What the kernels of wlib::atoms_linear get, and how it follows from the op's parameters.
#pragma once

#include "atoms/linear_plan.h"
#include "wlib/params/atoms_linear.h"
#include "wlib/sm90/tensor_map.h"

namespace wlib::atoms {

struct LinearKernelParams {
  // 128-byte swizzle, zeros outside: x [tokens, columns] in boxes of 64 tokens x 64 columns, atoms
  // [num_atoms * rows, columns] and base [rows, columns] in boxes of 128 rows x 64 columns.
  sm90::TensorMap x, atoms, base;
  const float* coef;  // of token m and atom s at m * coef_stride + s
  float* partials;    // [parts, tokens, rows]
  int tokens, rows;
  int num_atoms, summands;  // without and with the base
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

inline int64_t linear_summands(const LinearParams& p) { return p.num_atoms + (p.base != nullptr); }
inline LinearPlan linear_plan(const LinearParams& p) {
  return plan_linear(p.tokens, p.rows, p.columns, linear_summands(p));
}

// False if the driver refuses a tensor map.
inline bool make_linear_params(const LinearParams& p, float* partials, LinearKernelParams* to) {
  const auto matrix = [&](const void* base, int64_t rows, uint32_t box_rows) {
    return sm90::MatrixTiles{base,
                             uint64_t(rows),
                             uint64_t(p.columns),
                             uint64_t(p.columns) * 2,
                             box_rows,
                             kLinearColumns,
                             2};
  };
  to->coef = static_cast<const float*>(p.coef);
  to->partials = partials;
  to->tokens = int(p.tokens);
  to->rows = int(p.rows);
  to->num_atoms = int(p.num_atoms);
  to->summands = int(linear_summands(p));
  to->coef_stride = p.coef_per_token ? int(p.num_atoms) : 0;
  to->plan = linear_plan(p);
  return sm90::make_tensor_map(&to->x, matrix(p.x, p.tokens, kLinearTokens)) &&
         sm90::make_tensor_map(&to->atoms, matrix(p.atoms, p.num_atoms * p.rows, kLinearRows)) &&
         (!p.base || sm90::make_tensor_map(&to->base, matrix(p.base, p.rows, kLinearRows)));
}

inline LinearSumParams make_linear_sum(const LinearParams& p, const float* partials) {
  return {partials, p.bias, p.out, p.tokens * p.rows, int(p.rows), linear_plan(p).parts(), p.type};
}

}  // namespace wlib::atoms

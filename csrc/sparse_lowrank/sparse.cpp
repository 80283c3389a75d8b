// Checks the arguments of wlib::tile_sparse_matmul and tile_sampled_matmul, picks CPU or CUDA. That
// positions and offsets describe a matrix is checked where they are made
// (python/wlib/sparse_lowrank.py).
#include "sparse_lowrank/sparse.h"

#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "sparse_lowrank/sparse_cuda.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "torch/summed_type.h"

namespace wlib::sparse_lowrank {
namespace {

constexpr int64_t kMaxSize = (int64_t(1) << 31) - kSparseTile;

void check_size(const Checker& check, int64_t size, const char* argument) {
  check.require(size >= 1 && size < kMaxSize, argument,
                std::string(argument) + " from 1 to 2^31 - 129", size);
}

// The matrix, but for its values.
TileSparse check_matrix(const Checker& check, int64_t rows, int64_t columns,
                        const Tensor& positions, const Tensor& offsets, const Tensor& x) {
  TileSparse m{};
  m.rows = int32_t(rows);
  m.columns = int32_t(columns);
  check.dtype(positions, "positions", ScalarType::Short);
  check.dtype(offsets, "offsets", ScalarType::Long);
  check.require(positions.dim() == 1, "positions", "positions of one dimension",
                [&] { return shape_text(positions); });
  m.count = positions.size(0);
  check.tensor(positions, "positions", std::vector<int64_t>{m.count}, x, "x");
  check.tensor(offsets, "offsets", std::vector<int64_t>{m.tiles() + 1}, x, "x");
  m.positions = static_cast<const int16_t*>(positions.const_data_ptr());
  m.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
  return m;
}

// x as rows of `columns` elements.
int64_t check_activations(const Checker& check, const Tensor& t, const char* argument,
                          int64_t columns, int64_t* stride) {
  check.require(
      t.dim() >= 1 && t.size(t.dim() - 1) == columns, argument,
      [&] { return std::string(argument) + " of shape [..., " + std::to_string(columns) + "]"; },
      [&] { return shape_text(t); });
  check.require(t.is_cpu() || t.is_cuda(), argument, std::string(argument) + " on cpu or cuda",
                [&] { return Checker::device_text(t); });
  const Rows rows = rows_of(check, t, argument);
  *stride = rows.stride;
  return rows.count;
}

}  // namespace

Tensor sparse_matmul(const Tensor& x, const Tensor& values, const Tensor& positions,
                     const Tensor& offsets, int64_t rows, int64_t columns, bool transposed,
                     std::optional<Tensor> base, std::optional<Tensor> bias) {
  const Checker check("tile_sparse_matmul");
  SparseMatmulParams p{};
  p.type = summed_type(check, x, "x");
  check_size(check, rows, "rows");
  check_size(check, columns, "columns");
  p.tokens = check_activations(check, x, "x", transposed ? rows : columns, &p.x_stride);
  p.matrix = check_matrix(check, rows, columns, positions, offsets, x);
  p.matrix.value_type = matching_type(check, p.type, values.scalar_type(), "values");
  check.tensor(values, "values", std::vector<int64_t>{p.matrix.count}, x, "x");
  p.matrix.values = values.const_data_ptr();
  p.transposed = transposed;
  const int64_t outs = transposed ? columns : rows;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = outs;
  if (base) {
    check.dtype(*base, "base", x.scalar_type());
    check.tensor(*base, "base", shape, x, "x");
    p.base = base->const_data_ptr();
  }
  if (bias) {
    check.dtype(*bias, "bias", x.scalar_type());
    check.tensor(*bias, "bias", std::vector<int64_t>{outs}, x, "x");
    p.bias = bias->const_data_ptr();
  }
  const Tensor out = new_empty(x, shape, x.scalar_type());
  if (p.tokens == 0) return out;
  p.x = x.const_data_ptr();
  p.out = out.mutable_data_ptr();
  if (x.is_cpu()) {
    sparse_matmul_cpu(p);
    return out;
  }
#ifdef WLIB_HAS_CUDA
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const bool ordered_apart = transposed && p.type == FloatType::kFloat32;
  const std::vector<int64_t> size = {ordered_apart ? p.matrix.count : 0};
  const Tensor ordered = new_empty(x, size, ScalarType::Float);
  const Tensor places = new_empty(x, size, ScalarType::Short);
  const char* error = sparse_matmul_cuda(p, static_cast<float*>(ordered.mutable_data_ptr()),
                                         static_cast<int16_t*>(places.mutable_data_ptr()), device,
                                         current_cuda_stream(device));
  if (error) throw_cuda_error(check, error);
  return out;
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

Tensor sparse_sample(const Tensor& dy, const Tensor& x, const Tensor& positions,
                     const Tensor& offsets, std::optional<ScalarType> out_dtype) {
  const Checker check("tile_sampled_matmul");
  SampleParams p{};
  p.type = summed_type(check, x, "x");
  check.dtype(dy, "dy", x.scalar_type());
  const auto last = [](const Tensor& t) { return t.dim() ? t.size(t.dim() - 1) : 0; };
  check_size(check, last(x), "x");
  check_size(check, last(dy), "dy");
  p.tokens = check_activations(check, x, "x", last(x), &p.x_stride);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = last(dy);
  check.shape(dy, "dy", shape);
  check.same_device(dy, "dy", x, "x");
  check_activations(check, dy, "dy", last(dy), &p.dy_stride);
  p.matrix = check_matrix(check, last(dy), last(x), positions, offsets, x);
  const ScalarType type = out_dtype.value_or(x.scalar_type());
  p.matrix.value_type = matching_type(check, p.type, type, "out_dtype");
  const std::vector<int64_t> count = {p.matrix.count};
  const Tensor values = new_empty(x, count, type);
  if (p.matrix.count == 0) return values;
  p.dy = dy.const_data_ptr();
  p.x = x.const_data_ptr();
  p.values = values.mutable_data_ptr();
  if (x.is_cpu()) {
    sparse_sample_cpu(p);
    return values;
  }
#ifdef WLIB_HAS_CUDA
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const bool many = p.splits() > 1;
  const std::vector<int64_t> size = {many ? p.splits() : 0, p.matrix.count};
  const Tensor partials = new_empty(x, size, ScalarType::Float);
  if (many) p.partials = static_cast<float*>(partials.mutable_data_ptr());
  if (const char* error = sparse_sample_cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
  return values;
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

}  // namespace wlib::sparse_lowrank

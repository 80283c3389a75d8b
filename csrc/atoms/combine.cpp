// wlib::atoms_combine: weighted sums of whole checkpoints, tensor by tensor.
#include <torch/csrc/stable/accelerator.h>

#include "atoms/arguments.h"
#include "atoms/cpu.h"
#include "atoms/ops.h"
#include "atoms/reconstruct_cuda.h"
#include "torch/empty.h"
#include "torch/stream.h"

namespace wlib::atoms {
namespace {

// Tensor t of all lists: alike in everything but their values.
FloatType check_column(const Checker& check, const std::vector<Tensor>& tensors, size_t t,
                       size_t width) {
  const Tensor& first = tensors[t];
  const FloatType type = summed_type(check, first, "tensors");
  for (size_t i = t; i < tensors.size(); i += width) {
    check.dtype(tensors[i], "tensors", first.scalar_type());
    check_like(check, tensors[i], "tensors", sizes_of(first), tensors[0], "the first tensor");
  }
  return type;
}

void run(const Checker& check, const std::vector<ReconstructParams>& tensors, const Tensor& like) {
  if (like.is_cpu()) {
    for (const ReconstructParams& p : tensors) reconstruct_cpu(p);
    return;
  }
#ifdef WLIB_HAS_CUDA
  const int32_t device = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = combine_cuda(tensors, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

}  // namespace

std::vector<Tensor> combine(std::vector<Tensor> tensors, const Tensor& coef) {
  const Checker check("atoms_combine");
  const auto shape = sizes_of(coef);
  check.require(shape.size() == 2 && shape[0] >= 1 && shape[0] <= kMaxArrays && shape[1] >= 1 &&
                    shape[1] <= kMaxArrays,
                "coef", "coef of shape [P, S], 1 to 32768 each", [&] { return shape_text(coef); });
  const size_t outputs = shape[0], lists = shape[1];
  check.require(
      !tensors.empty() && tensors.size() % lists == 0, "tensors",
      [&] { return "a positive multiple of S=" + std::to_string(lists) + " tensors"; },
      [&] { return std::to_string(tensors.size()); });
  const size_t width = tensors.size() / lists;
  const Tensor& first = tensors[0];
  check.require(first.is_cpu() || first.is_cuda(), "tensors", "tensors on cpu or cuda",
                [&] { return Checker::device_text(first); });
  check.same_device(coef, "coef", first, "tensors");
  std::vector<FloatType> types(width);
  for (size_t t = 0; t < width; ++t) {
    types[t] = check_column(check, tensors, t, width);
    check_coefficient(check, types[t], coef);
  }

  std::vector<Tensor> outs;
  for (size_t i = 0; i < outputs * width; ++i) {
    const Tensor& like = tensors[i % width];
    outs.push_back(new_empty(like, sizes_of(like), like.scalar_type()));
  }
  // The pointers of tensor t: its inputs, then its outputs.
  std::vector<const void*> inputs;
  std::vector<void*> results;
  for (size_t t = 0; t < width; ++t) {
    for (size_t i = t; i < tensors.size(); i += width)
      inputs.push_back(tensors[i].const_data_ptr());
    for (size_t i = t; i < outs.size(); i += width) results.push_back(outs[i].mutable_data_ptr());
  }
  std::vector<ReconstructParams> sums(width);
  for (size_t t = 0; t < width; ++t) {
    ReconstructParams& p = sums[t];
    p.atom = inputs.data() + t * lists;
    p.out = results.data() + t * outputs;
    p.coef = coef.const_data_ptr();
    p.num_layers = int64_t(outputs);
    p.num_atoms = int64_t(lists);
    p.rows = 1;
    p.columns = tensors[t].numel();
    p.scale = 1;
    p.atom_type = p.out_type = types[t];
  }
  run(check, sums, first);
  return outs;
}

}  // namespace wlib::atoms

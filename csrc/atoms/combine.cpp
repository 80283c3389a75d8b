// wlib::atoms_combine: weighted sums of whole checkpoints, tensor by tensor.
#include "atoms/arguments.h"
#include "atoms/cpu.h"
#include "atoms/ops.h"
#include "torch/empty.h"

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
  if (!first.is_cpu()) check.no_kernel("device cuda (rows: cpu)");

  std::vector<Tensor> outs;
  for (size_t i = 0; i < outputs * width; ++i) {
    const Tensor& like = tensors[i % width];
    outs.push_back(new_empty(like, sizes_of(like), like.scalar_type()));
  }
  for (size_t t = 0; t < width; ++t) {
    std::vector<const void*> atom;
    std::vector<void*> out;
    for (size_t i = t; i < tensors.size(); i += width) atom.push_back(tensors[i].const_data_ptr());
    for (size_t i = t; i < outs.size(); i += width) out.push_back(outs[i].mutable_data_ptr());
    ReconstructParams p{};
    p.atom = atom.data();
    p.out = out.data();
    p.coef = coef.const_data_ptr();
    p.num_layers = int64_t(outputs);
    p.num_atoms = int64_t(lists);
    p.rows = 1;
    p.columns = tensors[t].numel();
    p.scale = 1;
    p.atom_type = p.out_type = types[t];
    reconstruct_cpu(p);
  }
  return outs;
}

}  // namespace wlib::atoms

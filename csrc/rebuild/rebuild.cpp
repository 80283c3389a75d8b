// Checks every argument of wlib::rebuild, fills a RebuildLayer for each layer, picks CPU or CUDA.
#include "rebuild/rebuild.h"

#include <torch/csrc/stable/accelerator.h>

#include <limits>
#include <string>

#include "rebuild/rebuild_cuda.h"
#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "torch/summed_type.h"

namespace wlib::rebuild {
namespace {

constexpr int64_t kSizeLimit = std::numeric_limits<int32_t>::max();

std::string indexed(const char* name, size_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

struct Arguments {
  const std::vector<Tensor>&w0, &operands;
  const std::vector<int64_t>& forms;
  const std::vector<double>& scales;
  std::optional<ScalarType> out_dtype;
  std::optional<int64_t> seed;
};

int operand_count(RebuildForm form) {
  return form == RebuildForm::kHadamard ? 4 : form == RebuildForm::kBlockAffine ? 1 : 2;
}

// Number of operands before each layer, and of all.
std::vector<size_t> check_counts(const Checker& check, const Arguments& a) {
  const size_t layers = a.forms.size();
  std::vector<size_t> first = {0};
  for (size_t i = 0; i < layers; ++i) {
    check.require(a.forms[i] >= 0 && a.forms[i] < kRebuildForms, indexed("forms", i).c_str(),
                  "a form of 0 (low rank), 1 (hadamard), 2 (kron) or 3 (block_affine)", a.forms[i]);
    first.push_back(first.back() + operand_count(RebuildForm(a.forms[i])));
  }
  check.require(
      a.scales.size() == layers, "scales",
      [&] { return "scales of " + std::to_string(layers) + " layers"; }, a.scales.size());
  check.require(
      a.w0.empty() || a.w0.size() == layers, "w0",
      [&] { return "w0 of " + std::to_string(layers) + " layers, or of none"; }, a.w0.size());
  check.require(
      a.operands.size() == first.back(), "operands",
      [&] { return std::to_string(first.back()) + " operands for these forms"; },
      a.operands.size());
  return first;
}

// The checks of layer `index`, whose operands start at `first`.
class LayerParser {
 public:
  LayerParser(const Checker& check, const Arguments& a, size_t index, size_t first)
      : check_(check), a_(a), index_(index), first_(first) {}

  RebuildLayer parse() {
    layer_.form = RebuildForm(a_.forms[index_]);
    layer_.scale = a_.scales[index_];
    const Tensor& lead = operand(0);
    check_.require(lead.is_cpu() || lead.is_cuda(), name(0).c_str(), "operands on cpu or cuda",
                   [&] { return Checker::device_text(lead); });
    layer_.operand_type = summed_type(check_, lead, name(0).c_str());
    for (int i = 0; i < operand_count(layer_.form); ++i) check_operand(i);
    if (layer_.form == RebuildForm::kBlockAffine)
      parse_blocks();
    else
      parse_factors();
    if (!a_.w0.empty()) parse_w0();
    return layer_;
  }

 private:
  const Tensor& operand(int i) const { return a_.operands[first_ + i]; }
  std::string name(int i) const { return indexed("operands", first_ + i); }
  int64_t size(int i, int dim) const { return operand(i).size(dim); }

  void check_operand(int i) {
    const Tensor& t = operand(i);
    const int dims = layer_.form == RebuildForm::kBlockAffine ? 3 : 2;
    check_.dtype(t, name(i).c_str(), operand(0).scalar_type());
    check_.same_device(t, name(i).c_str(), a_.operands[0], "operands[0]");
    check_.require(
        t.dim() == dims, name(i).c_str(),
        [&] { return "an operand of " + std::to_string(dims) + " dimensions"; },
        [&] { return shape_text(t); });
    for (int64_t d = 0; d < dims; ++d) {
      check_.require(t.size(d) < kSizeLimit && t.stride(d) >= 0 && t.stride(d) < kSizeLimit,
                     name(i).c_str(), "sizes and strides below 2^31",
                     [&] { return shape_text(t); });
    }
  }
  void check_shape(int i, int64_t rows, int64_t columns) {
    const int64_t expected[] = {rows, columns};
    check_.shape(operand(i), name(i).c_str(), expected);
  }
  RebuildOperand matrix(int i) const {
    const Tensor& t = operand(i);
    return {t.const_data_ptr(), int32_t(t.stride(0)), int32_t(t.stride(1))};
  }
  void set_size(int64_t rows, int64_t columns) {
    check_.require(rows < kSizeLimit && columns < kSizeLimit, name(0).c_str(),
                   "an output of fewer than 2^31 rows and columns",
                   [&] { return shape_text(operand(0)); });
    layer_.rows = int32_t(rows);
    layer_.columns = int32_t(columns);
  }
  void parse_factors() {
    layer_.a1 = matrix(0);
    layer_.b1 = matrix(1);
    if (layer_.form == RebuildForm::kKron) {
      layer_.rank1 = int32_t(size(1, 0));
      layer_.rank2 = int32_t(size(1, 1));
      return set_size(size(0, 0) * size(1, 0), size(0, 1) * size(1, 1));
    }
    set_size(size(0, 0), size(1, 1));
    layer_.rank1 = int32_t(size(0, 1));
    check_shape(1, layer_.rank1, layer_.columns);
    if (layer_.form != RebuildForm::kHadamard) return;
    layer_.a2 = matrix(2);
    layer_.b2 = matrix(3);
    layer_.rank2 = int32_t(size(2, 1));
    check_shape(2, layer_.rows, layer_.rank2);
    check_shape(3, layer_.rank2, layer_.columns);
  }
  void parse_blocks() {
    const int64_t r = size(0, 1);
    const int64_t expected[] = {size(0, 0), r, r};
    check_.shape(operand(0), name(0).c_str(), expected);
    check_.contiguous(operand(0), name(0).c_str());
    check_.require(!a_.w0.empty(), "w0", "w0 for form 3 (block_affine)", "none");
    const Tensor& w0 = a_.w0[index_];
    check_.require(
        w0.dim() == 2 && w0.size(0) == size(0, 0) * r && r > 0 && w0.size(1) % r == 0,
        indexed("w0", index_).c_str(),
        [&] {
          return "w0 of shape [" + std::to_string(size(0, 0) * r) + ", a multiple of " +
                 std::to_string(r) + "]";
        },
        [&] { return shape_text(w0); });
    layer_.b1 = {operand(0).const_data_ptr(), int32_t(r), 1};
    layer_.rank1 = int32_t(r);
    set_size(w0.size(0), w0.size(1));
  }
  void parse_w0() {
    const Tensor& w0 = a_.w0[index_];
    const std::string argument = indexed("w0", index_);
    layer_.w0_type = summed_type(check_, w0, argument.c_str());
    check_.same_device(w0, argument.c_str(), a_.operands[0], "operands[0]");
    check_.contiguous(w0, argument.c_str());
    check_.require(
        w0.numel() == int64_t(layer_.rows) * layer_.columns &&
            (w0.dim() > 0 && w0.size(0) == layer_.rows),
        argument.c_str(),
        [&] {
          return "w0 of " + std::to_string(layer_.rows) + " rows of " +
                 std::to_string(layer_.columns) + " elements";
        },
        [&] { return shape_text(w0); });
    layer_.w0 = w0.const_data_ptr();
  }

  const Checker& check_;
  const Arguments& a_;
  size_t index_, first_;
  RebuildLayer layer_{};
};

std::vector<RebuildLayer> parse(const Checker& check, const Arguments& a) {
  const std::vector<size_t> first = check_counts(check, a);
  std::vector<RebuildLayer> layers;
  for (size_t i = 0; i < a.forms.size(); ++i)
    layers.push_back(LayerParser(check, a, i, first[i]).parse());
  return layers;
}

std::vector<int64_t> out_sizes(const Arguments& a, const RebuildLayer& layer, size_t index) {
  if (a.w0.empty()) return {layer.rows, layer.columns};
  const auto sizes = sizes_of(a.w0[index]);
  return {sizes.begin(), sizes.end()};
}

// Whether layer's output may be rounded as asked.
void check_rounding(const Checker& check, const Arguments& a, ScalarType type,
                    const char* argument) {
  if (a.seed && type != ScalarType::BFloat16) {
    check.refuse(argument, std::string(argument) + " of dtype torch.bfloat16 to round by a seed",
                 dtype_name(type));
  }
}

void run(const Checker& check, const Arguments& a, std::vector<RebuildLayer>& layers) {
  if (layers.empty()) return;
  const Rounding rounding{uint64_t(a.seed.value_or(0)), a.seed.has_value()};
  if (a.operands[0].is_cpu()) return rebuild_cpu(layers, rounding);
#ifdef WLIB_HAS_CUDA
  const int32_t device = a.operands[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = rebuild_cuda(layers, rounding, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

}  // namespace

std::vector<Tensor> rebuild(std::vector<Tensor> w0, std::vector<Tensor> operands,
                            std::vector<int64_t> forms, std::vector<double> scales,
                            std::optional<ScalarType> out_dtype, std::optional<int64_t> seed) {
  const Checker check("rebuild");
  const Arguments a{w0, operands, forms, scales, out_dtype, seed};
  std::vector<RebuildLayer> layers = parse(check, a);
  std::vector<ScalarType> types;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Tensor& like = a.w0.empty() ? a.operands[0] : a.w0[i];
    types.push_back(out_dtype.value_or(like.scalar_type()));
    layers[i].out_type = float_type_on(check, like, types[i], "out_dtype");
    check_rounding(check, a, types[i], "out_dtype");
  }
  std::vector<Tensor> out;
  for (size_t i = 0; i < layers.size(); ++i) {
    out.push_back(new_empty(operands[0], out_sizes(a, layers[i], i), types[i]));
    layers[i].out = out[i].mutable_data_ptr();
  }
  run(check, a, layers);
  return out;
}

void rebuild_out(std::vector<Tensor> w0, std::vector<Tensor> operands, std::vector<int64_t> forms,
                 std::vector<double> scales, std::optional<int64_t> seed, std::vector<Tensor> out) {
  const Checker check("rebuild");
  const Arguments a{w0, operands, forms, scales, std::nullopt, seed};
  std::vector<RebuildLayer> layers = parse(check, a);
  check.require(
      out.size() == layers.size(), "out",
      [&] { return "out of " + std::to_string(layers.size()) + " layers"; }, out.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string argument = indexed("out", i);
    layers[i].out_type = summed_type(check, out[i], argument.c_str());
    check_rounding(check, a, out[i].scalar_type(), argument.c_str());
    check.shape(out[i], argument.c_str(), out_sizes(a, layers[i], i));
    check.same_device(out[i], argument.c_str(), operands[0], "operands[0]");
    check.contiguous(out[i], argument.c_str());
    layers[i].out = out[i].mutable_data_ptr();
    const bool in_place = layers[i].out == layers[i].w0 && out[i].numel() > 0;
    check.require(!in_place || (layers[i].form != RebuildForm::kBlockAffine &&
                                layers[i].out_type == layers[i].w0_type),
                  argument.c_str(), "out apart from w0 for form 3 (block_affine) or another dtype",
                  "the memory of w0");
  }
  run(check, a, layers);
}

}  // namespace wlib::rebuild

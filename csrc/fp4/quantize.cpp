// wlib::fp4_quantize, fp4_requantize_t, fp4_signs and hadamard: check their arguments, allocate
// what was asked for, pick CPU or CUDA.
#include <torch/csrc/stable/accelerator.h>

#include "fp4/choices.h"
#include "fp4/cpu.h"
#include "fp4/ops.h"
#include "fp4/quantize_cuda.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "wlib/layout/scales_128x4.h"
#include "wlib/numerics/hadamard.h"

namespace wlib::fp4 {
namespace {

// The arguments that both quantising ops share.
struct Options {
  const std::string &format, &scale_rule;
  int64_t hadamard;
  const std::optional<Tensor>&signs, &global_scale;
  bool packed;
  const std::string& carrier;
  int64_t window;
  bool mask, swizzle, square;
  const std::string& rounding;
  const std::optional<Tensor>& seed;
  int64_t offset;
};

void check_device(const Checker& check, const Tensor& t, const char* argument) {
  check.require(t.is_cpu() || t.is_cuda(), argument, std::string(argument) + " on cpu or cuda",
                [&] { return Checker::device_text(t); });
}

void check_matrix(const Checker& check, const Tensor& t, const char* argument) {
  check_device(check, t, argument);
  check.require(t.dim() == 2, argument, std::string(argument) + " of shape [R, C]",
                [&] { return shape_text(t); });
}

void check_rotation(const Checker& check, int64_t size, const std::optional<Tensor>& signs,
                    const Tensor& like, const char* argument) {
  check.require(is_hadamard_size(size), argument, std::string(argument) + " of 16, 32, 64 or 128",
                size);
  if (!signs) return;
  const int64_t expected[] = {size};
  check.dtype(*signs, "signs", ScalarType::Char);
  check.shape(*signs, "signs", expected);
  check.same_device(*signs, "signs", like, "x");
  check.contiguous(*signs, "signs");
}

float* scalar(const Checker& check, const Tensor& t, const char* argument, const Tensor& like) {
  check.dtype(t, argument, ScalarType::Float);
  check.shape(t, argument, {});
  check.same_device(t, argument, like, "x");
  return static_cast<float*>(t.mutable_data_ptr());
}

// Tells whether the seed holds the step, too.
bool check_seed(const Checker& check, const Tensor& seed, int64_t offset) {
  check.dtype(seed, "seed", ScalarType::Long);
  const bool has_step = seed.dim() == 1 && seed.numel() == 2;
  check.require(seed.dim() == 0 || has_step, "seed", "seed of shape [] or [2]",
                [&] { return shape_text(seed); });
  check.contiguous(seed, "seed");
  check.require(offset >= 0 && offset <= kLargestOffset, "offset",
                "offset of 0 to " + std::to_string(kLargestOffset), offset);
  return has_step;
}

void parse_rounding(const Checker& check, const Options& o, const Tensor& like, QuantizeParams* p) {
  p->rounding = choose(check, "rounding", o.rounding, kRoundings);
  check.require(p->rounding != Rounding::kMsEden || p->rule == ScaleRule::kAmax, "rounding",
                "scale_rule 'amax' of nvfp4 for rounding 'ms_eden'",
                [&] { return "'" + o.scale_rule + "'"; });
  check.require(p->rounding != Rounding::kStochastic || p->rule != ScaleRule::kFourOverSix,
                "rounding", "rounding 'nearest' for 'four_over_six'", "'stochastic'");
  check.require(!o.square || (p->rule == ScaleRule::kAmax && p->rounding == Rounding::kNearest),
                "square", "square blocks with 'amax' of nvfp4 and rounding 'nearest' only",
                [&] { return "'" + o.scale_rule + "', '" + o.rounding + "'"; });
  p->square = o.square;
  const bool random = p->rounding != Rounding::kNearest;
  check.require(random || !o.seed, "seed", "no seed for rounding 'nearest'", "a seed");
  if (!random) return;
  check.require(o.seed.has_value(), "seed", "a seed for rounding '" + o.rounding + "'", "none");
  p->seed_has_step = check_seed(check, *o.seed, o.offset);
  check.same_device(*o.seed, "seed", like, "x");
  p->seed = static_cast<const int64_t*>(o.seed->const_data_ptr());
  p->offset = uint32_t(o.offset);
}

void parse_options(const Checker& check, const Options& o, const Tensor& like, QuantizeParams* p) {
  const bool mx = choose(check, "format", o.format, kFormats);
  p->rule = mx ? choose(check, "scale_rule", o.scale_rule, kMxRules)
               : choose(check, "scale_rule", o.scale_rule, kNvRules);
  p->carrier = choose(check, "carrier", o.carrier, kCarriers);
  check.require(mx || p->carrier == Carrier::kNone, "carrier", "no carrier for nvfp4",
                [&] { return "'" + o.carrier + "'"; });
  const int widest = p->carrier == Carrier::kNone ? 255 : carrier_range(p->carrier).binades();
  check.require(o.window == 0 || (mx && o.window > 0 && o.window <= widest), "window",
                mx ? "window of 0 to " + std::to_string(widest) : "window 0 for nvfp4", o.window);
  p->window = o.window || p->carrier == Carrier::kNone ? int(o.window) : widest;
  check.require(o.packed || p->carrier != Carrier::kNone, "packed", "packed codes or a carrier",
                "neither");
  if (o.hadamard) check_rotation(check, o.hadamard, o.signs, like, "hadamard");
  check.require(o.hadamard || !o.signs, "signs", "no signs without a rotation", "signs");
  p->hadamard = int(o.hadamard);
  if (o.signs) p->signs = static_cast<const int8_t*>(o.signs->const_data_ptr());
  p->swizzle = o.swizzle;
  check.require(!mx || !o.global_scale, "global_scale", "no global_scale for mxfp4",
                "global_scale");
  p->global_scale_is_given = o.global_scale.has_value();
  if (o.global_scale) p->global_scale = scalar(check, *o.global_scale, "global_scale", like);
  parse_rounding(check, o, like, p);
}

void check_columns(const Checker& check, const QuantizeParams& p, const char* argument) {
  const int64_t unit = std::max(p.block(), p.hadamard);
  check.require(
      p.columns() % unit == 0, argument,
      std::string(p.transpose ? "rows" : "columns") + " in multiples of " + std::to_string(unit),
      p.columns());
}

// Allocates one side's outputs.
std::vector<Tensor> allocate(const Options& o, const Tensor& like, QuantizeParams* p) {
  const int64_t rows = p->rows(), columns = p->columns(), scales = columns / p->block();
  const auto make = [&](bool wanted, std::vector<int64_t> shape, ScalarType type, auto** data) {
    const Tensor t = new_empty(like, wanted ? shape : std::vector<int64_t>{0}, type);
    if (wanted) *data = static_cast<std::remove_pointer_t<decltype(data)>>(t.mutable_data_ptr());
    return t;
  };
  const bool mx = is_mx(p->rule), carrier = p->carrier != Carrier::kNone;
  const std::vector<int64_t> scale_shape =
      p->swizzle ? std::vector{padded_scale_rows(rows), padded_scale_columns(scales)}
                 : std::vector{rows, scales};
  std::vector<Tensor> out;
  out.push_back(make(o.packed, {rows, columns / 2}, ScalarType::Byte, &p->out.codes));
  out.push_back(make(o.packed, scale_shape, mx ? ScalarType::Byte : ScalarType::Float8_e4m3fn,
                     &p->out.scales));
  // A given global scale is copied: an op must not return its argument.
  const float* given = p->global_scale_is_given ? p->global_scale : nullptr;
  out.push_back(make(!mx && !given, {}, ScalarType::Float, &p->global_scale));
  out.push_back(
      make(carrier, {rows, columns},
           p->carrier == Carrier::kE5M2 ? ScalarType::Float8_e5m2 : ScalarType::Float8_e4m3fn,
           &p->out.carrier));
  out.push_back(make(carrier, {rows}, ScalarType::Float, &p->out.row_scale));
  out.push_back(make(o.mask, {rows, columns / 8}, ScalarType::Byte, &p->out.mask));
  return out;
}

// Calls launch(device, stream) for the current stream of x's device.
template <class Launch>
void run_cuda(const Checker& check, [[maybe_unused]] const Tensor& x,
              [[maybe_unused]] Launch launch) {
#ifdef WLIB_HAS_CUDA
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = launch(device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

// What the passes of the CUDA kernels hand to each other.
std::vector<Tensor> allocate_scratch(const Tensor& like, QuantizeParams* p) {
  std::vector<Tensor> scratch;
  const auto make = [&](int64_t count, ScalarType type, auto** data) {
    const int64_t shape[] = {count};
    scratch.push_back(new_empty(like, shape, type));
    *data = static_cast<std::remove_pointer_t<decltype(data)>>(scratch.back().mutable_data_ptr());
  };
  if (!p->out.codes) {
    make(p->rows() * p->columns() / 2, ScalarType::Byte, &p->out.codes);
    make(p->scales(), ScalarType::Byte, &p->out.scales);
  }
  if (!p->wants_largest()) return scratch;
  const int64_t along = quantize_tiles(p->columns());
  make(along * (is_mx(p->rule) ? p->rows() : quantize_tiles(p->rows())), ScalarType::Int,
       &p->tile_largest);
  if (is_mx(p->rule)) make(p->rows(), ScalarType::Int, &p->row_largest);
  return scratch;
}

void run(const Checker& check, std::span<QuantizeParams> sides, const Tensor& like) {
  if (like.is_cpu()) {
    for (const QuantizeParams& p : sides) quantize_cpu(p);
    return;
  }
  std::vector<std::vector<Tensor>> scratch;
  for (QuantizeParams& p : sides) scratch.push_back(allocate_scratch(like, &p));
  run_cuda(check, like, [&](int32_t device, void* stream) {
    return quantize_cuda(sides.data(), int(sides.size()), device, stream);
  });
}

Source parse_packed(const Checker& check, const Tensor& codes, const Tensor& scales,
                    const std::optional<Tensor>& global_scale) {
  check_matrix(check, codes, "codes");
  check.dtype(codes, "codes", ScalarType::Byte);
  check.contiguous(codes, "codes");
  Source s{};
  s.rows = sizes_of(codes)[0];
  s.columns = sizes_of(codes)[1] * 2;
  const int block = global_scale ? kNvBlock : kMxBlock;
  check.dtype(scales, "scales", global_scale ? ScalarType::Float8_e4m3fn : ScalarType::Byte);
  const int64_t expected[] = {s.rows, s.columns / block};
  check.shape(scales, "scales", expected);
  check.same_device(scales, "scales", codes, "codes");
  check.contiguous(scales, "scales");
  s.packed.codes = static_cast<const uint8_t*>(codes.const_data_ptr());
  s.packed.scales = static_cast<const uint8_t*>(scales.const_data_ptr());
  if (global_scale) s.packed.global_scale = scalar(check, *global_scale, "old_global_scale", codes);
  return s;
}

}  // namespace

std::vector<Tensor> quantize(const Tensor& x, Text format, Text axis, Text scale_rule,
                             int64_t hadamard, std::optional<Tensor> signs,
                             std::optional<Tensor> global_scale, bool packed, Text carrier,
                             int64_t window, bool mask, bool swizzle, bool square, Text rounding,
                             std::optional<Tensor> seed, int64_t offset) {
  const Checker check("fp4_quantize");
  const Options o{format, scale_rule, hadamard, signs,  global_scale, packed, carrier,
                  window, mask,       swizzle,  square, rounding,     seed,   offset};
  constexpr Choice<int> kAxes[] = {{"rows", 1}, {"columns", 2}, {"both", 3}};
  QuantizeParams p{};
  p.source.x_type = check.floating(x.scalar_type(), "x");
  check_matrix(check, x, "x");
  const Rows matrix = rows_of(check, x, "x");
  p.source.rows = matrix.count;
  p.source.columns = sizes_of(x)[1];
  p.source.x_stride = matrix.stride;
  p.source.x = x.const_data_ptr();
  const int sides = choose(check, "axis", axis, kAxes);
  parse_options(check, o, x, &p);
  QuantizeParams side[2] = {p, p};
  side[1].transpose = true;
  for (int i = 0; i < 2; ++i)
    if (sides >> i & 1) check_columns(check, side[i], "x");
  std::vector<Tensor> out;
  for (int i = 0; i < 2; ++i) {
    if (!(sides >> i & 1)) continue;
    for (Tensor& t : allocate(o, x, &side[i])) out.push_back(std::move(t));
  }
  run(check, std::span(side).subspan(sides == 2, sides == 3 ? 2 : 1), x);
  return out;
}

std::vector<Tensor> requantize_t(const Tensor& codes, const Tensor& scales,
                                 std::optional<Tensor> old_global_scale, Text format,
                                 Text scale_rule, int64_t hadamard, std::optional<Tensor> signs,
                                 std::optional<Tensor> global_scale, bool packed, Text carrier,
                                 int64_t window, bool mask, bool swizzle, bool square,
                                 Text rounding, std::optional<Tensor> seed, int64_t offset) {
  const Checker check("fp4_requantize_t");
  const Options o{format, scale_rule, hadamard, signs,  global_scale, packed, carrier,
                  window, mask,       swizzle,  square, rounding,     seed,   offset};
  QuantizeParams p{};
  p.source = parse_packed(check, codes, scales, old_global_scale);
  p.transpose = true;
  parse_options(check, o, codes, &p);
  check_columns(check, p, "codes");
  std::vector<Tensor> out = allocate(o, codes, &p);
  run(check, {&p, 1}, codes);
  return out;
}

Tensor signs(const Tensor& seed, int64_t size, int64_t offset) {
  const Checker check("fp4_signs");
  check_device(check, seed, "seed");
  SignsParams p{};
  p.seed_has_step = check_seed(check, seed, offset);
  check.require(is_hadamard_size(size), "size", "size of 16, 32, 64 or 128", size);
  const int64_t shape[] = {size};
  const Tensor out = new_empty(seed, shape, ScalarType::Char);
  p.seed = static_cast<const int64_t*>(seed.const_data_ptr());
  p.offset = uint32_t(offset);
  p.size = int(size);
  p.signs = static_cast<int8_t*>(out.mutable_data_ptr());
  if (seed.is_cpu())
    signs_cpu(p);
  else
    run_cuda(check, seed, [&](int32_t device, void* s) { return signs_cuda(p, device, s); });
  return out;
}

Tensor hadamard(const Tensor& x, int64_t size, std::optional<Tensor> signs, bool inverse) {
  const Checker check("hadamard");
  HadamardParams p{};
  p.type = check.floating(x.scalar_type(), "x");
  check_device(check, x, "x");
  check.require(x.dim() >= 1, "x", "x of at least one dimension", "a scalar");
  check_rotation(check, size, signs, x, "size");
  const Rows rows = rows_of(check, x, "x");
  p.rows = rows.count;
  p.columns = sizes_of(x).back();
  p.x_stride = rows.stride;
  check.require(
      p.columns % size == 0, "x",
      [&] { return "a last dimension in multiples of " + std::to_string(size); }, p.columns);
  p.size = int(size);
  p.inverse = inverse;
  if (signs) p.signs = static_cast<const int8_t*>(signs->const_data_ptr());
  const Tensor y = new_empty(x, sizes_of(x), x.scalar_type());
  p.x = x.const_data_ptr();
  p.y = y.mutable_data_ptr();
  if (x.is_cpu())
    hadamard_cpu(p);
  else
    run_cuda(check, x, [&](int32_t device, void* s) { return hadamard_cuda(p, device, s); });
  return y;
}

}  // namespace wlib::fp4

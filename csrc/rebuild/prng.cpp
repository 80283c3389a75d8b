// Checks the arguments of wlib::prng_expand and prng_project, picks CPU or CUDA.
#include "rebuild/prng.h"

#include <torch/csrc/stable/accelerator.h>

#include <limits>

#include "rebuild/prng_cuda.h"
#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/stream.h"

namespace wlib::rebuild {
namespace {

constexpr int64_t kCountLimit = std::numeric_limits<int32_t>::max();

// What both ops have in common; `like` holds float32, or float64 on the CPU, or is to be rounded.
PrngParams parse(const Checker& check, int64_t seed, const std::string& distribution,
                 int64_t tensor_id) {
  PrngParams p{};
  p.seed = uint64_t(seed);
  check.require(tensor_id >= 0 && tensor_id < int64_t(1) << 32, "tensor_id",
                "tensor_id from 0 to 2^32 - 1", tensor_id);
  p.tensor = uint32_t(tensor_id);
  const bool sign = distribution == "sign", normal = distribution == "normal";
  check.require(sign || normal || distribution == "uniform", "dist",
                "dist 'uniform', 'sign' or 'normal'", "'" + distribution + "'");
  p.distribution = sign     ? Distribution::kSign
                   : normal ? Distribution::kNormal
                            : Distribution::kUniform;
  return p;
}

bool is_double(const Tensor& t) { return t.scalar_type() == ScalarType::Double && t.is_cpu(); }

}  // namespace

Tensor prng_expand(const Tensor& coef, std::vector<int64_t> shape, int64_t seed, Text distribution,
                   int64_t tensor_id, std::optional<ScalarType> out_dtype) {
  const Checker check("prng_expand");
  PrngParams p = parse(check, seed, distribution, tensor_id);
  if (!is_double(coef)) check.dtype(coef, "coef", ScalarType::Float);
  check.require(coef.dim() == 1 && coef.size(0) < kCountLimit, "coef",
                "coef of one dimension, of fewer than 2^31", [&] { return shape_text(coef); });
  check.contiguous(coef, "coef");
  p.count = int32_t(coef.size(0));
  p.elements = 1;
  for (const int64_t size : shape) {
    check.require(size >= 0 && (size == 0 || p.elements <= (int64_t(1) << 40) / size), "shape",
                  "sizes of at least 0 and at most 2^40 elements",
                  [&] { return shape_text(shape); });
    p.elements *= size;
  }
  const ScalarType type = out_dtype.value_or(coef.scalar_type());
  if (is_double(coef)) {
    check.require(type == ScalarType::Double, "out_dtype",
                  "out_dtype of dtype torch.float64 like coef", dtype_name(type));
    p.value_type = FloatType::kFloat64;
  } else {
    p.value_type = check.floating(type, "out_dtype");
  }
  const Tensor out = new_empty(coef, shape, type);
  if (p.elements == 0) return out;
  p.coef = const_cast<void*>(coef.const_data_ptr());
  p.values = out.mutable_data_ptr();
  if (coef.is_cpu()) {
    prng_expand_cpu(p);
    return out;
  }
#ifdef WLIB_HAS_CUDA
  const int32_t device = coef.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = prng_expand_cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
  return out;
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

Tensor prng_project(const Tensor& values, int64_t count, int64_t seed, Text distribution,
                    int64_t tensor_id) {
  const Checker check("prng_project");
  PrngParams p = parse(check, seed, distribution, tensor_id);
  check.require(count >= 0 && count < kCountLimit, "count", "count from 0 to 2^31 - 1", count);
  p.count = int32_t(count);
  p.elements = values.numel();
  p.value_type =
      is_double(values) ? FloatType::kFloat64 : check.floating(values.scalar_type(), "values");
  check.contiguous(values, "values");
  const ScalarType type = is_double(values) ? ScalarType::Double : ScalarType::Float;
  const int64_t sizes[] = {count};
  const Tensor coef = new_empty(values, sizes, type);
  p.coef = coef.mutable_data_ptr();
  p.values = const_cast<void*>(values.const_data_ptr());
  if (values.is_cpu()) {
    prng_project_cpu(p);
    return coef;
  }
#ifdef WLIB_HAS_CUDA
  const int32_t device = values.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t partial_sizes[] = {project_chunks(p) * count};
  const Tensor partials = new_empty(coef, partial_sizes, ScalarType::Float);
  p.partials = static_cast<float*>(partials.mutable_data_ptr());
  if (const char* error = prng_project_cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
  return coef;
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

}  // namespace wlib::rebuild

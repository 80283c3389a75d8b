// wlib::fp8_quantize: checks its argument, fills QuantizeParams, picks CPU or CUDA.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "int4fp8/cpu.h"
#include "int4fp8/cuda.h"
#include "int4fp8/ops.h"
#include "torch/checks.h"
#include "torch/stream.h"

namespace wlib::int4fp8 {
namespace {

QuantizeParams parse(const Checker& check, const Tensor& x) {
  QuantizeParams p{};
  p.x_type = check.floating(x.scalar_type(), "x");
  check.require(x.dim() >= 1, "x", "x of at least one dimension", "a scalar");
  check.require(x.is_cpu() || x.is_cuda(), "x", "x on cpu or cuda", Checker::device_text(x));
  const Rows rows = rows_of(check, x, "x");
  p.rows = rows.count;
  p.k = sizes_of(x).back();
  p.x_stride = rows.stride;
  p.x = x.const_data_ptr();
  return p;
}

void run(const Checker& check, const QuantizeParams& p, const Tensor& x) {
  if (p.rows == 0) return;
  if (x.is_cpu()) return quantize_cpu(p);
#ifdef WLIB_HAS_CUDA
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = quantize_cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

}  // namespace

std::tuple<Tensor, Tensor> quantize(const Tensor& x) {
  const Checker check("fp8_quantize");
  QuantizeParams p = parse(check, x);
  const auto sizes = sizes_of(x);
  const Tensor codes = torch::stable::new_empty(x, x.sizes(), ScalarType::Float8_e4m3fn);
  const Tensor scale =
      torch::stable::new_empty(x, x.sizes().slice(0, sizes.size() - 1), ScalarType::Float);
  p.codes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  run(check, p, x);
  return {codes, scale};
}

}  // namespace wlib::int4fp8

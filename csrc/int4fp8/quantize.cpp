// wlib::fp8_quantize and fp8_group_sums: check their arguments, fill the parameters, pick CPU or
// CUDA.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "int4fp8/cpu.h"
#include "int4fp8/cuda.h"
#include "int4fp8/ops.h"
#include "torch/checks.h"
#include "torch/stream.h"
#include "wlib/layout/int4_tile.h"

namespace wlib::int4fp8 {
namespace {

#ifdef WLIB_HAS_CUDA
#define WLIB_LAUNCHER(function) function
#else
#define WLIB_LAUNCHER(function) nullptr  // declared, but not in this library
#endif

// Calls cpu(p) or cuda(p, ...), by the device of x.
template <class Params>
void run(const Checker& check, const Params& p, const Tensor& x, void (*cpu)(const Params&),
         const char* (*cuda)(const Params&, int, void*)) {
  if (p.rows == 0) return;
  if (x.is_cpu()) return cpu(p);
  if (!cuda) check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
}

// x as rows of length k.
Rows parse_rows(const Checker& check, const Tensor& x, const char* argument) {
  check.require(x.dim() >= 1, argument, std::string(argument) + " of at least one dimension",
                "a scalar");
  check.require(x.is_cpu() || x.is_cuda(), argument, std::string(argument) + " on cpu or cuda",
                Checker::device_text(x));
  return rows_of(check, x, argument);
}

int parse_group(const Checker& check, int64_t group_size, int64_t k) {
  switch (int4::groups_per_tile(group_size, k)) {
    case 1: return 7;
    case 2: return 6;
    case 4: return 5;
    default:
      check.refuse("group_size",
                   "group_size of 32, 64, a multiple of 128 or k itself, dividing k=" +
                       std::to_string(k) + " (a multiple of 32)",
                   std::to_string(group_size));
  }
}

QuantizeParams parse(const Checker& check, const Tensor& x) {
  QuantizeParams p{};
  p.x_type = check.floating(x.scalar_type(), "x");
  const Rows rows = parse_rows(check, x, "x");
  p.rows = rows.count;
  p.k = sizes_of(x).back();
  p.x_stride = rows.stride;
  p.x = x.const_data_ptr();
  return p;
}

GroupSumsParams parse(const Checker& check, const Tensor& xq, int64_t group_size) {
  GroupSumsParams p{};
  check.dtype(xq, "xq", ScalarType::Float8_e4m3fn);
  const Rows rows = parse_rows(check, xq, "xq");
  p.rows = rows.count;
  p.k = sizes_of(xq).back();
  p.x_stride = rows.stride;
  p.pitch = int4::ceil_div(p.rows, kSumsAlignment) * kSumsAlignment;
  p.group_log2 = parse_group(check, group_size, p.k);
  p.x = static_cast<const uint8_t*>(xq.const_data_ptr());
  if (xq.is_cuda() && xq.numel() > 0) {
    check.aligned(p.x, "xq", 16);
    check.require(p.x_stride % 16 == 0, "xq", "rows of xq a multiple of 16 elements apart",
                  std::to_string(p.x_stride));
  }
  return p;
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
  run(check, p, x, quantize_cpu, WLIB_LAUNCHER(quantize_cuda));
  return {codes, scale};
}

Tensor group_sums(const Tensor& xq, int64_t group_size) {
  const Checker check("fp8_group_sums");
  GroupSumsParams p = parse(check, xq, group_size);
  const int64_t shape[] = {int4::ceil_div(p.k, int64_t(1) << p.group_log2), p.pitch};
  const Tensor sums = torch::stable::new_empty(xq, shape, ScalarType::Float);
  p.sums = static_cast<float*>(sums.mutable_data_ptr());
  run(check, p, xq, group_sums_cpu, WLIB_LAUNCHER(group_sums_cuda));
  return sums;
}

}  // namespace wlib::int4fp8

// wlib::append_kv_int4 and wlib::quantize_q_fp8: check every argument, fill the parameters.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <type_traits>

#include "prefill/cpu.h"
#include "prefill/cuda.h"
#include "prefill/ops.h"
#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "wlib/layout/int4_kv.h"

#ifdef WLIB_HAS_CUDA
#define WLIB_CUDA(launcher) launcher
#else
#define WLIB_CUDA(launcher) nullptr
#endif

namespace wlib::prefill {
namespace {

// x [tokens, heads, head_dim] with unit stride along head_dim.
void check_heads(const Checker& check, const Tensor& x, const char* name) {
  check.require(
      x.dim() == 3, name, [&] { return std::string(name) + " of shape [tokens, heads, head_dim]"; },
      [&] { return shape_text(x); });
  const auto strides = x.strides();
  check.require(
      x.size(2) == 1 || strides[2] == 1, name,
      [&] { return std::string(name) + " with unit stride in the last dimension"; },
      [&] { return "strides " + shape_text({strides.data(), strides.size()}); });
  const int64_t dim = x.size(2);
  check.require(dim == 64 || dim == 128 || dim == 256, name, "head_dim of 64, 128 or 256", dim);
}

void check_factors(const Checker& check, const std::optional<Tensor>& factors, const char* name,
                   int64_t heads, int64_t dim, const Tensor& like, const char* like_name) {
  if (!factors) return;
  const int64_t shape[] = {heads, dim};
  check.dtype(*factors, name, ScalarType::Float);
  check.shape(*factors, name, shape);
  check.same_device(*factors, name, like, like_name);
  check.contiguous(*factors, name);
}

// On the CPU by `cpu`, else by `cuda` on the current stream of x's device. Without CUDA that is
// null, which tells no type.
template <class Params>
void run(const Checker& check, const Tensor& x, const Params& p, void (*cpu)(const Params&),
         [[maybe_unused]] std::type_identity_t<const char* (*)(const Params&, int, void*)> cuda) {
  if (x.is_cpu()) return cpu(p);
  if (!x.is_cuda()) check.no_kernel("device " + Checker::device_text(x) + " (rows: cpu, cuda)");
#ifdef WLIB_HAS_CUDA
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

const float* floats(const std::optional<Tensor>& t) {
  return t ? static_cast<const float*>(t->const_data_ptr()) : nullptr;
}

void check_slots(const Checker& check, const AppendParams& p) {
  for (int64_t i = 0; i < p.tokens; ++i) {
    if (p.slots[i] < p.blocks * int4kv::kBlockTokens) continue;
    check.refuse("slot_mapping",
                 "slots below " + std::to_string(p.blocks * int4kv::kBlockTokens) +
                     ", the cache's blocks times 64",
                 std::to_string(p.slots[i]));
  }
}

}  // namespace

void append_kv(const Tensor& k, const Tensor& v, const Tensor& slot_mapping, const Tensor& k_cache,
               const Tensor& v_cache, const Tensor& k_scale, const Tensor& v_scale,
               std::optional<Tensor> k_mean, std::optional<Tensor> k_smooth) {
  const Checker check("append_kv_int4");
  AppendParams p{};
  p.type = check.floating(k.scalar_type(), "k");
  check_heads(check, k, "k");
  check.dtype(v, "v", k.scalar_type());
  check_heads(check, v, "v");
  check.shape(v, "v", sizes_of(k));
  check.same_device(v, "v", k, "k");
  p.tokens = k.size(0);
  p.heads = int(k.size(1));
  p.head_dim = int(k.size(2));

  check.require(k_cache.dim() == 3, "k_cache", "k_cache of shape [blocks, heads, head_dim * 32]",
                [&] { return shape_text(k_cache); });
  p.blocks = k_cache.size(0);
  const int64_t cache_shape[] = {p.blocks, p.heads, int4kv::block_bytes(p.head_dim)};
  const int64_t scale_shape[] = {p.blocks, p.heads, int4kv::kBlockTokens};
  const auto check_cache = [&](const Tensor& t, const char* name, ScalarType type,
                               std::span<const int64_t> shape) {
    check.dtype(t, name, type);
    check.shape(t, name, shape);
    check.same_device(t, name, k, "k");
    check.contiguous(t, name);
  };
  check_cache(k_cache, "k_cache", ScalarType::Byte, cache_shape);
  check_cache(v_cache, "v_cache", ScalarType::Byte, cache_shape);
  check_cache(k_scale, "k_scale", ScalarType::Float, scale_shape);
  check_cache(v_scale, "v_scale", ScalarType::Float, scale_shape);
  const int64_t slots_shape[] = {p.tokens};
  check.dtype(slot_mapping, "slot_mapping", ScalarType::Long);
  check.shape(slot_mapping, "slot_mapping", slots_shape);
  check.same_device(slot_mapping, "slot_mapping", k, "k");
  check.contiguous(slot_mapping, "slot_mapping");
  check_factors(check, k_mean, "k_mean", p.heads, p.head_dim, k, "k");
  check_factors(check, k_smooth, "k_smooth", p.heads, p.head_dim, k, "k");

  p.k = k.const_data_ptr();
  p.v = v.const_data_ptr();
  p.slots = static_cast<const int64_t*>(slot_mapping.const_data_ptr());
  p.mean = floats(k_mean);
  p.smooth = floats(k_smooth);
  for (int i = 0; i < 2; ++i) {
    p.k_stride[i] = k.strides()[i];
    p.v_stride[i] = v.strides()[i];
  }
  if (k.is_cpu()) check_slots(check, p);
  for (const auto& [pointer, name] : {std::pair<const void*, const char*>{p.mean, "k_mean"},
                                      {p.smooth, "k_smooth"},
                                      {k_cache.const_data_ptr(), "k_cache"},
                                      {v_cache.const_data_ptr(), "v_cache"}}) {
    if (k.is_cuda()) check.aligned(pointer, name, 16);
  }
  p.k_cache = static_cast<uint8_t*>(k_cache.mutable_data_ptr());
  p.v_cache = static_cast<uint8_t*>(v_cache.mutable_data_ptr());
  p.k_scale = static_cast<float*>(k_scale.mutable_data_ptr());
  p.v_scale = static_cast<float*>(v_scale.mutable_data_ptr());
  if (p.tokens > 0 && p.heads > 0) run(check, k, p, append_cpu, WLIB_CUDA(append_cuda));
}

std::tuple<Tensor, Tensor> quantize_queries(const Tensor& q, std::optional<Tensor> k_smooth,
                                            std::optional<Tensor> cos, std::optional<Tensor> sin) {
  const Checker check("quantize_q_fp8");
  QuantizeQueriesParams p{};
  p.type = check.floating(q.scalar_type(), "q");
  check_heads(check, q, "q");
  p.tokens = q.size(0);
  p.heads = int(q.size(1));
  p.kv_heads = p.heads;
  p.head_dim = int(q.size(2));
  if (k_smooth) {
    const int64_t heads = k_smooth->dim() == 2 ? k_smooth->size(0) : 0;
    check.require(
        heads > 0 && p.heads % heads == 0, "k_smooth",
        [&] {
          return "k_smooth of shape [kv_heads, head_dim], kv_heads dividing " +
                 std::to_string(p.heads) + " query heads";
        },
        [&] { return shape_text(*k_smooth); });
    p.kv_heads = int(heads);
  }
  check_factors(check, k_smooth, "k_smooth", p.kv_heads, p.head_dim, q, "q");
  check.require(cos.has_value() == sin.has_value(), cos ? "sin" : "cos", "both cos and sin or none",
                "one of them");
  check_factors(check, cos, "cos", p.tokens, p.head_dim / 2, q, "q");
  check_factors(check, sin, "sin", p.tokens, p.head_dim / 2, q, "q");
  p.smooth = floats(k_smooth);
  p.cos = floats(cos);
  p.sin = floats(sin);
  for (const auto& [pointer, name] : {std::pair<const void*, const char*>{p.smooth, "k_smooth"},
                                      {p.cos, "cos"},
                                      {p.sin, "sin"}}) {
    if (q.is_cuda()) check.aligned(pointer, name, 16);
  }

  const Tensor codes = new_empty(q, sizes_of(q), ScalarType::Float8_e4m3fn);
  const Tensor scale = new_empty(q, sizes_of(q).first(2), ScalarType::Float);
  p.q = q.const_data_ptr();
  for (int i = 0; i < 2; ++i) p.stride[i] = q.strides()[i];
  p.codes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  if (p.tokens > 0 && p.heads > 0)
    run(check, q, p, quantize_queries_cpu, WLIB_CUDA(quantize_queries_cuda));
  return {codes, scale};
}

}  // namespace wlib::prefill

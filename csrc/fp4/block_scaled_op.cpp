#include "fp4/block_scaled_op.h"

#ifdef WLIB_HAS_CUDA
#include <torch/csrc/stable/accelerator.h>
#endif

#include <cstdint>

#include "fp4/block_scaled.h"
#include "torch/empty.h"
#include "torch/stream.h"

namespace wlib::fp4 {

void check_block_scaled(const Checker& check, const MatmulParams& p) {
  constexpr int kColumns = kBlockScaledBytes * 2;
  check.require(p.k % kColumns == 0, "a",
                "rows in multiples of " + std::to_string(kColumns) + " for mode 'block_scaled'",
                p.k);
  const int columns = kBlockScaledBytes / (p.out_type == FloatType::kFloat32 ? 4 : 2);
  check.require(
      p.b.rows % columns == 0, "b",
      [&] {
        return "b with rows in multiples of " + std::to_string(columns) +
               " for mode 'block_scaled' and this out_dtype";
      },
      p.b.rows);
  for (const auto& [size, name] : {std::pair{p.a.rows, "a"}, {p.b.rows, "b"}, {p.k, "a"}})
    check.require(size <= INT32_MAX, name, "sizes below 2^31 for mode 'block_scaled'", size);
  const std::pair<const uint8_t*, const char*> addresses[] = {{p.a.packed.codes, "a"},
                                                              {p.a.packed.scales, "a_scale"},
                                                              {p.b.packed.codes, "b"},
                                                              {p.b.packed.scales, "b_scale"}};
  for (const auto& [pointer, name] : addresses) check.aligned(pointer, name, kBlockScaledBytes);
}

#ifdef WLIB_HAS_CUDA
void block_scaled_on_cuda(const Checker& check, const MatmulParams& p, const Tensor& like) {
  const int32_t device = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  std::optional<Tensor> workspace;  // may go after the launch: memory is reused in stream order
  const auto allocate = [&](size_t bytes) {
    const int64_t shape[] = {int64_t(bytes)};
    workspace = new_empty(like, shape, ScalarType::Byte);
    return workspace->mutable_data_ptr();
  };
  if (const char* error = block_scaled_cuda(p, device, current_cuda_stream(device), allocate))
    throw_cuda_error(check, error);
}
#else
void block_scaled_on_cuda(const Checker& check, const MatmulParams&, const Tensor&) {
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
}
#endif

}  // namespace wlib::fp4

// The dispatch table of mode block_scaled: WLIB_HAS_SM100A and WLIB_HAS_SM120A say what was built.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>
#include <vector>

#include "fp4/block_scaled.h"

namespace wlib::fp4 {
namespace {

using Launch = const char* (*)(const MatmulParams&, int, void*, const Allocate&);

struct Row {
  int arch;
  bool nv;
  FloatType out;
  Launch launch;
};

template <int kArch>
void add_rows(std::vector<Row>* rows) {
  const auto add = [&]<bool kNv, FloatType kOut> {
    rows->push_back({kArch, kNv, kOut, &launch_block_scaled<kArch, kNv, kOut>});
  };
  add.template operator()<false, FloatType::kFloat32>();
  add.template operator()<false, FloatType::kBFloat16>();
  add.template operator()<false, FloatType::kFloat16>();
  add.template operator()<true, FloatType::kFloat32>();
  add.template operator()<true, FloatType::kBFloat16>();
  add.template operator()<true, FloatType::kFloat16>();
}

const std::vector<Row>& rows() {
  static const std::vector<Row> table = [] {
    std::vector<Row> built;
#ifdef WLIB_HAS_SM100A
    add_rows<100>(&built);
#endif
#ifdef WLIB_HAS_SM120A
    add_rows<120>(&built);
#endif
    return built;
  }();
  return table;
}

bool is_built(int arch) {
  return std::ranges::any_of(rows(), [=](const Row& row) { return row.arch == arch; });
}

const char* no_kernel(int arch) {
  thread_local std::string text;
  text = "no kernel for mode 'block_scaled' on compute capability " + std::to_string(arch / 10) +
         "." + std::to_string(arch % 10) + " (rows: cpu";
  for (const BlockScaledRow& row : kBlockScaledRows)
    if (is_built(row.arch)) text += ", " + std::to_string(row.arch / 10) + ".0";
  text += ")";
  return text.c_str();
}

}  // namespace

const char* block_scaled_cuda_rows() {
  static const std::string text = [] {
    std::string lines;
    for (const BlockScaledRow& row : kBlockScaledRows)
      if (is_built(row.arch)) lines += row.text;
    return lines;
  }();
  return text.c_str();
}

const char* block_scaled_cuda(const MatmulParams& p, int device, void* stream,
                              const Allocate& allocate) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const int arch = major * 10 + minor;
  if (!is_built(arch)) return no_kernel(arch);
  if (p.k == 0) {  // no tensor map describes an empty matrix
    const size_t bytes = size_t(p.a.rows) * p.b.rows * (p.out_type == FloatType::kFloat32 ? 4 : 2);
    const cudaError_t error = cudaMemsetAsync(p.y, 0, bytes, static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
  const bool nv = p.a.packed.global_scale != nullptr;
  for (const Row& row : rows())
    if (row.arch == arch && row.nv == nv && row.out == p.out_type)
      return row.launch(p, device, stream, allocate);
  return "no kernel for this type of the output";
}

}  // namespace wlib::fp4

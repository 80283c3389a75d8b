// The dispatch table of fp4_matmul on Hopper, and the kernel that arranges scales.
#include <string>

#include "cuda_device.h"
#include "fp4/matmul_cuda.h"
#include "fp4/sm90_matmul_launch.h"
#include "fp4/sm90_scales.h"
#include "wlib/sm90/launch.h"

namespace wlib::fp4 {
namespace {

bool is_carrier(const Operand& o) { return o.carrier_type != Carrier::kNone; }

template <class Source>
cudaError_t launch_arrange(const MatmulParams& p, const Workspace& w, When when,
                           cudaStream_t stream) {
  const int64_t ctas = (padded_rows(p.a.rows) + padded_rows(p.b.rows)) / kArrangedRows;
  return sm90::launch(arrange_scales_kernel<Source>, dim3(unsigned(ctas)), kArrangeThreads,
                      sizeof(ArrangeSmem), 1, stream, make_arrange_params(p, w, when));
}

cudaError_t multiply_bf16(const MatmulParams& p, const Workspace& w, When when,
                          cudaStream_t stream) {
  if (const auto error = launch_arrange<BF16Codes>(p, w, when, stream)) return error;
  return launch_matmul<kBF16Instance>(p, w, when, stream);
}

// Which of the two multiplies is decided on the device; the other one's launches end at once.
cudaError_t multiply_folded(const MatmulParams& p, const Workspace& w, cudaStream_t stream) {
  if (const auto error = launch_arrange<FoldedCodes>(p, w, When::kAlways, stream)) return error;
  if (const auto error = launch_matmul<kFoldedInstance>(p, w, When::kIfNarrow, stream))
    return error;
  return multiply_bf16(p, w, When::kIfWide, stream);
}

cudaError_t multiply_carriers(const MatmulParams& p, cudaStream_t stream) {
  using Launch = cudaError_t (*)(const MatmulParams&, const Workspace&, When, cudaStream_t);
  constexpr Launch kByTypes[2][2] = {{launch_matmul<0>, launch_matmul<1>},
                                     {launch_matmul<2>, launch_matmul<3>}};
  const Launch launch =
      kByTypes[p.a.carrier_type == Carrier::kE5M2][p.b.carrier_type == Carrier::kE5M2];
  return launch(p, {}, When::kAlways, stream);
}

cudaError_t multiply(const MatmulParams& p, void* workspace, cudaStream_t stream) {
  if (p.mode == MatmulMode::kExact32) return launch_exact(p, stream);
  if (is_carrier(p.a)) return multiply_carriers(p, stream);
  const Workspace w = Workspace::of(p, static_cast<uint8_t*>(workspace));
  if (p.mode == MatmulMode::kFold8) return multiply_folded(p, w, stream);
  return multiply_bf16(p, w, When::kAlways, stream);
}

}  // namespace

const char* matmul_cuda_rows() {
  return "sm_90a, mode fold8, carriers: sm90_matmul, 256x256 in pairs, FP8\n"
         "sm_90a, mode fold8, packed codes: sm90_arrange_scales, then sm90_matmul, 128x256, FP8 if "
         "no row's scales span more than 27 binades, else BF16\n"
         "sm_90a, mode bf16, packed codes: sm90_arrange_scales, then sm90_matmul, 128x256, BF16\n"
         "sm_90a, mode exact32: sm90_exact, one thread per element\n";
}

const char* refuse_matmul_cuda(const MatmulParams& p) {
  if (is_carrier(p.a) != is_carrier(p.b)) return "no kernel for a carrier times packed codes";
  if (is_carrier(p.a) && p.mode == MatmulMode::kBF16)
    return "no kernel for carriers in mode 'bf16' (rows: packed codes)";
  if (p.k % kMxBlock) return "no kernel for rows that are no multiple of 32 values";
  return nullptr;
}

int64_t matmul_cuda_workspace(const MatmulParams& p) {
  return is_carrier(p.a) || p.mode == MatmulMode::kExact32 ? 0 : Workspace::of(p).bytes;
}

const char* matmul_cuda(const MatmulParams& p, void* workspace, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const cudaError_t error = multiply(p, workspace, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wlib::fp4

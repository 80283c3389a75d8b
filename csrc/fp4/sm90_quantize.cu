#include "cuda_device.h"
#include "fp4/quantize_cuda.h"
#include "fp4/sm90_hadamard.h"
#include "fp4/sm90_passes.h"
#include "wlib/sm90/launch.h"

namespace wlib::fp4 {
namespace {

// Nothing here is Hopper's own, so a build may ask for more architectures (PORTABLE).
constexpr std::initializer_list<int> kArchs = {
    90,
#ifdef WLIB_HAS_SM100A
    100,
#endif
#ifdef WLIB_HAS_SM120A
    120,
#endif
};

const char* text(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, int threads, size_t smem_bytes, void* stream,
                   const Params& p) {
  return sm90::launch(kernel, grid, threads, int(smem_bytes), 1, static_cast<cudaStream_t>(stream),
                      p, sm90::Start::kEarly);
}

}  // namespace

std::string quantize_cuda_rows(const char* kernel) {
  std::string lines;
  for (const int arch : kArchs) lines += "sm_" + std::to_string(arch) + "a: " + kernel + "\n";
  return lines;
}

const char* quantize_cuda(const QuantizeParams* sides, int count, int device, void* stream) {
  if (const char* refusal = refuse_device(device, kArchs)) return refusal;
  const QuantizeLaunch l = make_launch({sides, size_t(count)});
  cudaError_t error = cudaSuccess;
  const auto pass = [&](auto kernel, int64_t x, int y, size_t bytes) {
    error = launch(kernel, dim3(unsigned(x), unsigned(y)), kTileThreads, bytes, stream, l);
    return error == cudaSuccess;
  };
  if (is_mx(l.side[0].rule))
    for_passes<true>(l, pass);
  else
    for_passes<false>(l, pass);
  return text(error);
}

const char* hadamard_cuda(const HadamardParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device, kArchs)) return refusal;
  if (p.rows * p.columns == 0) return nullptr;
  const HadamardLaunch l(p);
  return text(launch(hadamard_kernel, dim3(unsigned(l.ctas())), kTileThreads, sizeof(QuantizeSmem),
                     stream, l));
}

const char* signs_cuda(const SignsParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device, kArchs)) return refusal;
  return text(launch(signs_kernel, dim3(1), kSignThreads, 0, stream, p));
}

}  // namespace wlib::fp4

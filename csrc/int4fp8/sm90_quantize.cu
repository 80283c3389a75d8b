#include "int4fp8/cuda.h"
#include "int4fp8/sm90_group_sums.h"
#include "int4fp8/sm90_launch.h"
#include "int4fp8/sm90_quantize.h"
#include "wlib/sm90/launch.h"

namespace wlib::int4fp8 {

const char* quantize_cuda(const QuantizeParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const auto run = [&](auto kernel) {
    return sm90::launch(kernel, dim3(unsigned(p.rows)), kQuantizeThreads, sizeof(QuantizeSmem), 1,
                        static_cast<cudaStream_t>(stream), p);
  };
  const cudaError_t error = p.x_type == FloatType::kFloat32    ? run(quantize_kernel<float>)
                            : p.x_type == FloatType::kBFloat16 ? run(quantize_kernel<__nv_bfloat16>)
                                                               : run(quantize_kernel<__half>);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* group_sums_cuda(const GroupSumsParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const cudaError_t error =
      sm90::launch(group_sums_kernel, dim3(unsigned(p.pitch / kSumsAlignment)), kSumsThreads, 0, 1,
                   static_cast<cudaStream_t>(stream), p);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wlib::int4fp8

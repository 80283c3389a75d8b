#include "cuda_device.h"
#include "int4fp8/cuda.h"
#include "int4fp8/sm90_group_sums.h"
#include "int4fp8/sm90_launch.h"
#include "int4fp8/sm90_quantize.h"
#include "wlib/sm90/launch.h"

namespace wlib::int4fp8 {

const char* quantize_cuda(const QuantizeParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const QuantizeLaunch l = quantize_launch(p);
  const cudaError_t error =
      sm90::launch(l.kernel, dim3(unsigned(l.ctas)), l.threads, l.smem_bytes, 1,
                   static_cast<cudaStream_t>(stream), p, sm90::Start::kEarly);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* group_sums_cuda(const GroupSumsParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const cudaError_t error =
      sm90::launch(group_sums_kernel, dim3(unsigned(p.pitch / kSumsAlignment)), kSumsThreads, 0, 1,
                   static_cast<cudaStream_t>(stream), p, sm90::Start::kEarly);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wlib::int4fp8

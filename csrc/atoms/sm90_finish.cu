#include <algorithm>

#include "atoms/finish_cuda.h"
#include "atoms/sm90_finish.h"
#include "wlib/sm90/launch.h"

namespace wlib::atoms {

const char* finish_cuda(const FinishParams& p, void* stream) {
  const int64_t sums = p.rows * p.count, per_cta = kFinishThreads / kFinishLanes;
  if (sums == 0) return nullptr;
  const int64_t ctas = std::min<int64_t>((sums + per_cta - 1) / per_cta, (int64_t(1) << 31) - 1);
  const cudaError_t error = sm90::launch(finish_kernel, dim3(unsigned(ctas)), kFinishThreads, 0, 1,
                                         static_cast<cudaStream_t>(stream), p);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wlib::atoms

#include "fp4/sm90_exact.h"
#include "fp4/sm90_matmul_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::fp4 {

cudaError_t launch_exact(const MatmulParams& p, cudaStream_t stream) {
  constexpr int64_t kMost = 1 << 20;  // CTAs; they take turns
  const int64_t ctas = ceil_div(p.a.rows * p.b.rows, kExactThreads);
  return sm90::launch(exact_kernel, dim3(unsigned(ctas < kMost ? ctas : kMost)), kExactThreads, 0,
                      1, stream, make_exact_params(p));
}

}  // namespace wlib::fp4

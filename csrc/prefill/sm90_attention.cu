// The attention kernels for one head_dim; compiled once per WLIB_INSTANCE.
#include <algorithm>

#include "prefill/sm90_attention.h"
#include "prefill/sm90_attention_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::prefill {

template <int kHeadDim, bool kHalfScores, bool kTokenRows>
cudaError_t launch_attention(const AttentionKernelParams& p, cudaStream_t stream) {
  using C = AttentionConfig<kHeadDim, kHalfScores, kTokenRows>;
  constexpr int kBytes = sizeof(AttentionSmem<C>);
  static_assert(kBytes <= 227 * 1024);
  int resident = 0;
  if (const cudaError_t error =
          sm90::resident_clusters(attention_kernel<C>, C::kThreads, kBytes, 1, &resident))
    return error;
  const auto ctas = unsigned(std::min<int64_t>(p.plan.items, resident));
  return sm90::launch(attention_kernel<C>, dim3(ctas), C::kThreads, kBytes, 1, stream, p);
}
#define WLIB_LAUNCH(half_scores, token_rows)                                     \
  template cudaError_t launch_attention<WLIB_INSTANCE, half_scores, token_rows>( \
      const AttentionKernelParams&, cudaStream_t);
WLIB_LAUNCH(false, false)
WLIB_LAUNCH(true, false)
WLIB_LAUNCH(false, true)
WLIB_LAUNCH(true, true)
#undef WLIB_LAUNCH

}  // namespace wlib::prefill

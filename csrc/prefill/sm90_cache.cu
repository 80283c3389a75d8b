#include "cuda_device.h"
#include "prefill/append_plan.h"
#include "prefill/cuda.h"
#include "prefill/sm90_append.h"
#include "prefill/sm90_queries.h"
#include "wlib/sm90/launch.h"

namespace wlib::prefill {
namespace {

// f<T, head_dim>() for the type and head_dim given.
template <class F>
cudaError_t with_head(FloatType type, int head_dim, F f) {
  const auto with_dim = [&]<class T>() {
    switch (head_dim) {
      case 64: return f.template operator()<T, 64>();
      case 128: return f.template operator()<T, 128>();
      default: return f.template operator()<T, 256>();
    }
  };
  switch (type) {
    case FloatType::kFloat32: return with_dim.template operator()<float>();
    case FloatType::kBFloat16: return with_dim.template operator()<__nv_bfloat16>();
    default: return with_dim.template operator()<__half>();
  }
}

template <class T, int kHeadDim>
cudaError_t launch_append(const AppendParams& all, cudaStream_t stream) {
  const AppendPlan plan = append_plan(all.tokens, all.heads);
  for (int64_t first = 0; first < all.tokens; first += plan.tokens) {
    AppendLaunch l{all, plan.tokens_per_cta, plan.heads_per_cta};
    l.p.tokens = all.tokens - first < plan.tokens ? all.tokens - first : plan.tokens;
    l.p.slots += first;
    l.p.k = static_cast<const T*>(all.k) + first * all.k_stride[0];
    l.p.v = static_cast<const T*>(all.v) + first * all.v_stride[0];
    const dim3 grid(unsigned((l.p.tokens + l.tokens_per_cta - 1) / l.tokens_per_cta),
                    unsigned((all.heads + l.heads_per_cta - 1) / l.heads_per_cta));
    const cudaError_t error = sm90::launch(append_kernel<T, kHeadDim>, grid, kAppendThreads,
                                           int(sizeof(AppendSmem<kHeadDim>)), 1, stream, l);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

const char* text(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* append_cuda(const AppendParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  return text(with_head(p.type, p.head_dim, [&]<class T, int kHeadDim>() {
    return launch_append<T, kHeadDim>(p, static_cast<cudaStream_t>(stream));
  }));
}

const char* quantize_queries_cuda(const QuantizeQueriesParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  return text(with_head(p.type, p.head_dim, [&]<class T, int kHeadDim>() {
    return sm90::launch(quantize_queries_kernel<T, kHeadDim>,
                        dim3(unsigned(query_ctas<kHeadDim>(p))), kQueryThreads, 0, 1,
                        static_cast<cudaStream_t>(stream), p);
  }));
}

}  // namespace wlib::prefill

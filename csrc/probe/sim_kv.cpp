// Instrumented: the loads and stores of the kernels included here call the checker.
#include "probe/sim_kv.h"

#include "prefill/sm90_append.h"
#include "prefill/sm90_queries.h"

namespace wlib::prefill {
namespace {

sim::Buffer input(const void* data, int64_t bytes, const char* name) {
  return {const_cast<void*>(data), size_t(data ? bytes : 0), name, false};
}
sim::Buffer kept(void* data, int64_t bytes, const char* name) {
  return {data, size_t(bytes), name, true, true};
}
int64_t head_bytes(const int64_t (&stride)[2], int64_t tokens, int heads, int head_dim,
                   FloatType type) {
  const int64_t elements = (tokens - 1) * stride[0] + (heads - 1) * stride[1] + head_dim;
  return elements * (type == FloatType::kFloat32 ? 4 : 2);
}

#ifdef WLIB_SIM_ONLY_SMALL  // of the builds with planted bugs
template <class F>
sim::Report with_head(FloatType, int, F f) {
  return f.template operator()<__nv_bfloat16, 64>();
}
#else
template <class F>
sim::Report with_head(FloatType type, int head_dim, F f) {
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
#endif

}  // namespace

sim::Report simulate_append(const AppendParams& p, int tokens_per_cta, int heads_per_cta,
                            const sim::Options& options) {
  const int64_t factors = int64_t(p.heads) * p.head_dim * 4,
                scales = p.blocks * p.heads * int4kv::kBlockTokens * 4,
                codes = p.blocks * p.heads * int4kv::block_bytes(p.head_dim);
  const std::vector<sim::Buffer> buffers = {
      input(p.k, head_bytes(p.k_stride, p.tokens, p.heads, p.head_dim, p.type), "k"),
      input(p.v, head_bytes(p.v_stride, p.tokens, p.heads, p.head_dim, p.type), "v"),
      input(p.slots, p.tokens * 8, "slots"),
      input(p.mean, factors, "mean"),
      input(p.smooth, factors, "smooth"),
      kept(p.k_cache, codes, "k_cache"),
      kept(p.v_cache, codes, "v_cache"),
      kept(p.k_scale, scales, "k_scale"),
      kept(p.v_scale, scales, "v_scale")};
  const AppendLaunch l{p, tokens_per_cta, heads_per_cta};
  const sim::Dim3 grid{int((p.tokens + tokens_per_cta - 1) / tokens_per_cta),
                       (p.heads + heads_per_cta - 1) / heads_per_cta, 1};
  return with_head(p.type, p.head_dim, [&]<class T, int kHeadDim>() {
    const sim::LaunchConfig config{grid, kAppendThreads, sizeof(AppendSmem<kHeadDim>)};
    return sim::launch(config, options, buffers, append_kernel<T, kHeadDim>, l);
  });
}

sim::Report simulate_quantize_queries(const QuantizeQueriesParams& p, const sim::Options& options) {
  const int64_t rows = p.tokens * p.heads, angles = p.tokens * p.head_dim / 2 * 4;
  const std::vector<sim::Buffer> buffers = {
      input(p.q, head_bytes(p.stride, p.tokens, p.heads, p.head_dim, p.type), "q"),
      input(p.smooth, int64_t(p.kv_heads) * p.head_dim * 4, "smooth"),
      input(p.cos, angles, "cos"),
      input(p.sin, angles, "sin"),
      {p.codes, size_t(rows * p.head_dim), "codes", true},
      {p.scale, size_t(rows) * 4, "scale", true}};
  return with_head(p.type, p.head_dim, [&]<class T, int kHeadDim>() {
    const sim::LaunchConfig config{{int(query_ctas<kHeadDim>(p)), 1, 1}, kQueryThreads, 0};
    return sim::launch(config, options, buffers, quantize_queries_kernel<T, kHeadDim>, p);
  });
}

}  // namespace wlib::prefill

// The dispatch table of int4fp8_gemm on Hopper.
#include <string>

#include "cuda_device.h"
#include "int4fp8/cuda.h"
#include "int4fp8/gemm_plan.h"
#include "int4fp8/sm90_launch.h"

namespace wlib::int4fp8 {
namespace {

int64_t experts_of(const GemmParams& p) { return p.expert_offsets ? p.experts : 0; }
int64_t tokens_of(const GemmParams& p) { return planned_tokens(p.m, experts_of(p)); }

cudaError_t launch_large(const GemmParams& p, cudaStream_t stream) {
  int device = 0, sms = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const auto error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device))
    return error;
  if (p.zero_points && !p.x_sums) return launch_decode<64>(p, stream);  // K = 0
  switch (plan_large(p.m, p.n, p.k, sms, experts_of(p))) {
    case LargeKernel::kPingPong: return launch_cooperative<128>(p, sms, stream);
    case LargeKernel::kPairs: return launch_cooperative<256>(p, sms, stream);
    default: return launch_decode<64>(p, stream);
  }
}

constexpr int64_t kDecodeTokens = 64;  // more go to launch_large

struct Row {
  int64_t max_tokens;  // 0: any number
  const char* kernel;
  cudaError_t (*launch)(const GemmParams&, cudaStream_t);
};
// The first row that fits is taken.
constexpr Row kRows[] = {
    {8, "sm90_decode, tile of 8 tokens", launch_decode<8>},
    {16, "sm90_decode, tile of 16 tokens", launch_decode<16>},
    {32, "sm90_decode, tile of 32 tokens", launch_decode<32>},
    {kDecodeTokens, "sm90_decode, tile of 64 tokens", launch_decode<64>},
    {0,
     "the cheapest by gemm_plan.h of sm90_cooperative 128x128 ping-pong, sm90_cooperative 256x128 "
     "in pairs and sm90_decode in blocks of 64 tokens",
     launch_large},
};

template <class Condition>
std::string rows_text(const char* any, const Condition& condition) {
  std::string lines;
  for (const Row& row : kRows) {
    lines += "sm_90a, " + (row.max_tokens ? condition(row) : any) + ": " + row.kernel + "\n";
  }
  return lines;
}

}  // namespace

const char* gemm_cuda_rows() {
  static const std::string text =
      rows_text("any M", [](const Row& row) { return "M <= " + std::to_string(row.max_tokens); });
  return text.c_str();
}

const char* gemm_grouped_cuda_rows() {
  static const std::string text = rows_text(
      "any T", [](const Row& row) { return "T <= " + std::to_string(row.max_tokens / 2) + " E"; });
  return text.c_str();
}

bool gemm_cuda_wants_sums(const GemmParams& p) {
  return p.zero_points && !p.x_sums && tokens_of(p) > kDecodeTokens && p.k > 0;
}

const char* gemm_cuda(const GemmParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  for (const Row& row : kRows) {
    if (row.max_tokens && tokens_of(p) > row.max_tokens) continue;
    const cudaError_t error = row.launch(p, static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
  return "no kernel for this number of tokens";
}

}  // namespace wlib::int4fp8

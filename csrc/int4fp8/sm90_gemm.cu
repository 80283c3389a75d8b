// The dispatch table of int4fp8_gemm on Hopper.
#include <string>

#include "int4fp8/cuda.h"
#include "int4fp8/sm90_launch.h"

namespace wlib::int4fp8 {
namespace {

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
    {64, "sm90_decode, tile of 64 tokens", launch_decode<64>},
    {0, "sm90_decode, tile of 64 tokens, re-reading the weights from L2 per tile",
     launch_decode<64>},
};

}  // namespace

const char* gemm_cuda_rows() {
  static const std::string text = [] {
    std::string lines;
    for (const Row& row : kRows) {
      lines += std::string("sm_90a, ") +
               (row.max_tokens ? "M <= " + std::to_string(row.max_tokens) : "any M") + ": " +
               row.kernel + "\n";
    }
    return lines;
  }();
  return text.c_str();
}

const char* gemm_cuda(const GemmParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  for (const Row& row : kRows) {
    if (row.max_tokens && p.m > row.max_tokens) continue;
    const cudaError_t error = row.launch(p, static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
  return "no kernel for this number of tokens";
}

}  // namespace wlib::int4fp8

// Which instruction set the CPU kernels of every family run with.
#pragma once

#include <cstdlib>
#include <string>

namespace wlib {

// The best set this processor has. $WLIB_CPU_ISA may name a lesser one, so that tests reach them
// all; any other name changes nothing.
template <class Kernels>
const Kernels& pick_isa(const Kernels& baseline, const Kernels& avx2, const Kernels& avx512) {
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const std::string wanted = std::getenv("WLIB_CPU_ISA") ? std::getenv("WLIB_CPU_ISA") : "";
  if (wanted == "baseline" || !has_avx2) return baseline;
  return wanted == "avx2" || !has_avx512 ? avx2 : avx512;
}

}  // namespace wlib

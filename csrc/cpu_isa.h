// Which instruction set the CPU kernels of every family run with.
#pragma once

#include <cstdlib>
#include <string>

namespace wlib {

// The best set this processor has. $WLIB_CPU_ISA may name a lesser one, so that tests reach them
// all; any other name changes nothing.
template <class Kernels>
const Kernels& pick_isa(const Kernels& baseline, const Kernels& avx2, const Kernels& avx512,
                        const Kernels& avx512vnni) {
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni");
  const std::string wanted = std::getenv("WLIB_CPU_ISA") ? std::getenv("WLIB_CPU_ISA") : "";
  if (wanted == "baseline" || !has_avx2) return baseline;
  if (wanted == "avx2" || !has_avx512) return avx2;
  return wanted == "avx512" || !has_vnni ? avx512 : avx512vnni;
}

}  // namespace wlib

// Declares `variable`, which a file that wlib_cpu_kernels compiles defines per instruction set.
#define WLIB_DECLARE_PER_ISA(Kernels, variable) \
  namespace avx512vnni {                        \
  extern const Kernels variable;                \
  }                                             \
  namespace avx512 {                            \
  extern const Kernels variable;                \
  }                                             \
  namespace avx2 {                              \
  extern const Kernels variable;                \
  }                                             \
  namespace baseline {                          \
  extern const Kernels variable;                \
  }
#define WLIB_PICK_ISA(variable) \
  pick_isa(baseline::variable, avx2::variable, avx512::variable, avx512vnni::variable)

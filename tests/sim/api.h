// The functional Hopper simulator: everything a *user* of it needs (launch, options, report).
//
// The kernel under test is ordinary C++ compiled with -fsanitize=thread but linked without its
// runtime: the compiler then calls a hook for every load and store the kernel makes, and those
// hooks (hooks.cpp) are the memory checker. Asynchronous work and synchronisation enter through
// sim/device.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace wlib::sim {

enum class Schedule { kRoundRobin, kRandom };
enum class EngineTiming {
  kEager,
  kRandom,
  kLazy
};  // when copies land and wgmmas read their operands

struct Options {
  uint64_t seed = 0;
  Schedule schedule = Schedule::kRandom;
  EngineTiming timing = EngineTiming::kRandom;
  bool truncate_fp8 =
      false;  // accumulate FP8 products like Hopper: aligned, 13 fraction bits, truncated
  uint32_t preempt_every = 0;  // > 0: also switch threads about once per this many memory accesses
};

struct Dim3 {
  int x = 1, y = 1, z = 1;
};

struct LaunchConfig {
  Dim3 grid;
  int threads = 0;
  size_t smem_bytes = 0;
  int cluster = 1;         // CTAs along x that run together; divides grid.x
  bool dependent = false;  // may start before the launch before it on the stream has finished
};

struct Buffer {  // a global allocation; touching anything outside the listed ones is an error
  void* base;
  size_t bytes;
  const char* name;
  bool writable;  // then it is an output: reading what the kernel did not write is an error,
  bool initialised = false;  // except if it is also an input
  bool settled = false;  // of no concern to the launch before: may be read before the wait for it
};

struct Finding {
  std::string check;    // stable identifier, see docs/simulator.md
  std::string message;  // who, what, where, in words
  std::string source;   // file:line of the kernel statement, innermost first
};

struct Report {
  std::vector<Finding> findings;
  uint64_t switches = 0, accesses = 0, copies = 0, wgmmas = 0;
  bool ok() const { return findings.empty(); }
};

struct Kernel {  // type-erased `void kernel(Params)`
  void (*call)(void (*function)(), const void* params);
  void (*function)();
  const void* params;
  size_t params_bytes;
};
Report launch(const LaunchConfig& config, const Options& options,
              const std::vector<Buffer>& buffers, const Kernel& kernel);

// kernel<<<config>>>(params), on the CPU. The CTAs of a cluster run together, clusters one after
// the other, up to the first with findings.
template <class Params>
Report launch(const LaunchConfig& config, const Options& options,
              const std::vector<Buffer>& buffers, void (*kernel)(Params), const Params& params) {
  const auto call = [](void (*function)(), const void* p) {
    reinterpret_cast<void (*)(Params)>(function)(*static_cast<const Params*>(p));
  };
  return launch(config, options, buffers,
                Kernel{call, reinterpret_cast<void (*)()>(kernel), &params, sizeof(Params)});
}

}  // namespace wlib::sim

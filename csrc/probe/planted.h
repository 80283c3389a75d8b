// Small kernels for the simulator's own tests. Each comes twice: with a planted bug that one check
// must find, and repaired, in which no check may fire.
#pragma once

#include <span>

#include "sim/api.h"
#include "wlib/sm90/copy.h"

namespace wlib::probe {

struct PlantedParams {
  const uint8_t* input;  // [64, 128], read-only
  float* output;         // [256]
  sm90::TensorMap map;   // of the input; boxes of 8 x 128
  bool bug;
};

struct PlantedSmem {
  alignas(1024) uint8_t a[64 * 128];  // operands of a wgmma m64n8k32
  alignas(1024) uint8_t b[8 * 128];
  alignas(16) float value[256];
  uint64_t barrier[2];
};

struct PlantedCase {
  const char* name;
  const char* check;  // which must fire
  int threads;
  int cluster;  // also the number of CTAs
  void (*kernel)(PlantedParams);
  bool dependent = false;  // on a launch before it that uses both buffers
};

// By what they exercise.
std::span<const PlantedCase> planted_memory();
std::span<const PlantedCase> planted_sync();
std::span<const PlantedCase> planted_cluster();
std::span<const PlantedCase> planted_copy();
std::span<const PlantedCase> planted_mma();
std::span<const PlantedCase> planted_wgmma();
std::span<const PlantedCase> planted_dependency();

}  // namespace wlib::probe

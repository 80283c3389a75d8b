// Kernels whose results show what a primitive computes, for comparison with its definition.
#pragma once

#include "sim/api.h"

namespace wlib::probe {

// Half: FP16 accumulators; Mn: rows of shared memory are rows of k.
enum class MatrixType { kE4M3, kE4M3Half, kBF16, kBF16Mn, kF16, kF16Mn };

// d[64, n] = a[64, k] * b[n, k]^T for k = 128 bytes; operands placed by CuTe's layouts.
sim::Report run_wgmma(MatrixType type, int n, bool register_a, const uint8_t* a, const uint8_t* b,
                      float* d, const sim::Options& options);

// d[16, 8] += a[16, 16] * b[8, 16]^T of one warp; operands placed by CuTe's layouts.
sim::Report run_mma(MatrixType type, const uint16_t* a, const uint16_t* b, float* d,
                    const sim::Options& options);

// out[32, 4]: what each lane receives of x [32, 8], whose rows the lanes give in order, from row
// `first` on and round again.
sim::Report run_load_matrices(const uint16_t* x, uint32_t* out, int first, bool transposed,
                              const sim::Options& options);

// out[rows of the box, row_bytes]: the box at (column, row) of x [rows, columns], whose elements
// have `element_bytes`, brought by a tensor copy; with the swizzle, read by CuTe's swizzled layout.
struct TensorLoad {
  const uint8_t* x;
  int rows, columns, stride_bytes, element_bytes;
  bool swizzle;
  int row_bytes, column, row;
};
sim::Report run_tensor_load(const TensorLoad& load, uint8_t* out, const sim::Options& options);
constexpr int kTensorBoxRows = 64;

// A deadlock, unless PTX lets a wait for `parity` pass after `phases` phases.
sim::Report run_phase_wait(int phases, int parity, const sim::Options& options);

// out[32, 5] per lane: shuffle from lane 3, float shuffle xor 4, ballot of lanes divisible by 3,
// elected, warp index.
sim::Report run_warp(float* out, const sim::Options& options);

// out[cluster, cluster, 32]: what each CTA found in its shared memory after all had stored to all;
// gathered[cluster, 128]: x [128], of which each CTA loads its share for all by multicast.
sim::Report run_cluster(int cluster, const uint8_t* x, float* out, uint8_t* gathered,
                        const sim::Options& options);

constexpr int kShareBytes = 128;

// out[items, 2]: CTAs take turns at items; each writes its index and grid size.
sim::Report run_grid(int ctas, int items, int shift, int32_t* out, const sim::Options& options);

}  // namespace wlib::probe

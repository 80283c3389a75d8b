// Warp-level matrix instructions: all 32 lanes take part, and hold the operands in registers.
#pragma once

#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

// Fragments of D[16, 8] += A[16, 16] * B[16, 8], 16-bit numbers two in a register, the lower one
// first. The four registers of A hold its quarters [8, 8] in the order of load_matrices (upper
// left, lower left, upper right, lower right), the two of B its halves [8, 8], transposed, and D
// lies at (mma_row, mma_column).
WLIB_HOST_DEVICE constexpr int mma_row(int lane, int v) { return lane / 4 + v / 2 * 8; }
WLIB_HOST_DEVICE constexpr int mma_column(int lane, int v) { return lane % 4 * 2 + v % 2; }

#if WLIB_ON_DEVICE

#define WLIB_MMA(type)                                                       \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
WLIB_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  WLIB_MMA("bf16");
}
WLIB_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  WLIB_MMA("f16");
}
#undef WLIB_MMA

// Four matrices [8, 8] of 16-bit numbers from shared memory. Lane i gives the address of row i % 8
// of matrix i / 8: 16 bytes at a multiple of 16. Register m receives the two numbers of matrix m at
// row lane / 4, columns lane % 4 * 2 on; transposed: of column lane / 4, rows lane % 4 * 2 on.
WLIB_DEVICE void load_matrices(uint32_t (&matrix)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared_address(row))
               : "memory");
}
WLIB_DEVICE void load_matrices_transposed(uint32_t (&matrix)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared_address(row))
               : "memory");
}

#else

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  sim::dev::warp_mma(sim::dev::Element::kBF16, d, a, b);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  sim::dev::warp_mma(sim::dev::Element::kF16, d, a, b);
}
inline void load_matrices(uint32_t (&matrix)[4], const void* row) {
  sim::dev::load_matrices(matrix, row, false);
}
inline void load_matrices_transposed(uint32_t (&matrix)[4], const void* row) {
  sim::dev::load_matrices(matrix, row, true);
}

#endif

}  // namespace wlib::sm90

// mma.sync m16n8k16 and ldmatrix, with the fragments that the PTX ISA states.
#include <cuda_fp16.h>

#include <cstring>

#include "sim/machine.h"

namespace wlib::sim {

float sixteen_bits(dev::Element type, uint16_t bits) {
  if (type == dev::Element::kF16) return __half2float(__builtin_bit_cast(__half, bits));
  return __builtin_bit_cast(float, uint32_t(bits) << 16);
}

namespace dev {

// A lane computes its own four numbers from the fragments that all lanes have brought.
void warp_mma(Element type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Machine& m = WLIB_SIM_ENTER();
  const auto* kind = type == Element::kF16 ? "mma of f16" : "mma of bf16";
  const auto& lanes = m.meet(kind, {a[0], a[1], a[2], a[3], b[0], b[1]}).result;
  const auto number = [&](int lane, int word, int k) {
    return sixteen_bits(type, uint16_t(lanes[lane][word] >> k % 2 * 16));
  };
  const int own = m.self->lane();
  for (int v = 0; v < 4; ++v) {
    const int row = own / 4 + v / 2 * 8, column = own % 4 * 2 + v % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2;
      sum += number(row % 8 * 4 + pair, row / 8 + k / 8 * 2, k) *
             number(column * 4 + pair, 4 + k / 8, k);
    }
    d[v] += sum;
  }
}

void load_matrices(uint32_t (&matrix)[4], const void* row, bool transposed) {
  Machine& m = WLIB_SIM_ENTER();
  const uint32_t offset = m.own_shared_offset(row, 16, "ldmatrix");
  m.access(reinterpret_cast<uintptr_t>(row), 16, false, true);
  const auto& lanes = m.meet(transposed ? "ldmatrix.trans" : "ldmatrix", {offset}).result;
  const int group = m.self->lane() / 4, pair = m.self->lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    uint16_t number[2];
    for (int j = 0; j < 2; ++j) {
      const int r = transposed ? pair + j : group, column = transposed ? group : pair + j;
      std::memcpy(&number[j], m.self->cta->shared + lanes[i * 8 + r][0] + 2 * column, 2);
    }
    matrix[i] = number[0] | uint32_t(number[1]) << 16;
  }
}

}  // namespace dev
}  // namespace wlib::sim

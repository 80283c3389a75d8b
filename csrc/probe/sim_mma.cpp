// Instrumented. Values of the warp-level matrix instructions.
#include <cute/atom/mma_traits_sm80.hpp>

#include "probe/sim_values.h"
#include "wlib/sm90/mma.h"
#include "wlib/sm90/sync.h"

namespace wlib::probe {
namespace {

struct MmaParams {
  const uint16_t *a, *b;
  float* d;
  bool half;
};

using Traits = cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>;  // as for F16

// The registers of a lane's fragment of x [kRows, 16].
template <class Layout, int kRows, int kRegisters>
void load_fragment(const uint16_t* x, uint32_t (&registers)[kRegisters]) {
  for (int i = 0; i < 2 * kRegisters; ++i) {
    const int at = Layout{}(sm90::thread_index(), i);
    const auto bits = uint32_t(x[at % kRows * 16 + at / kRows]);
    registers[i / 2] = i % 2 ? registers[i / 2] | bits << 16 : bits;
  }
}

void mma_kernel(MmaParams p) {
  uint32_t a[4], b[2];
  load_fragment<Traits::ALayout, 16>(p.a, a);
  load_fragment<Traits::BLayout, 8>(p.b, b);
  const int lane = sm90::thread_index();
  float d[4];
  for (int v = 0; v < 4; ++v) d[v] = p.d[sm90::mma_row(lane, v) * 8 + sm90::mma_column(lane, v)];
  if (p.half)
    sm90::mma_f16(d, a, b);
  else
    sm90::mma_bf16(d, a, b);
  for (int v = 0; v < 4; ++v) {
    const int at = typename Traits::CLayout{}(lane, v);
    p.d[at % 16 * 8 + at / 16] = d[v];
  }
}

struct LoadParams {
  const uint16_t* x;
  uint32_t* out;
  int first;
  bool transposed;
};
struct LoadSmem {
  alignas(16) uint16_t x[32][8];
};

void load_kernel(LoadParams p) {
  auto& s = sm90::dynamic_smem<LoadSmem>();
  const int lane = sm90::thread_index();
  for (int i = lane; i < 32 * 8; i += 32) s.x[i / 8][i % 8] = p.x[i];
  sm90::warp_sync();
  uint32_t matrix[4];
  const uint16_t* row = s.x[(p.first + lane) % 32];
  if (p.transposed)
    sm90::load_matrices_transposed(matrix, row);
  else
    sm90::load_matrices(matrix, row);
  for (int i = 0; i < 4; ++i) p.out[lane * 4 + i] = matrix[i];
}

sim::Buffer input(const void* data, size_t bytes, const char* name) {
  return {const_cast<void*>(data), bytes, name, false};
}

}  // namespace

sim::Report run_mma(MatrixType type, const uint16_t* a, const uint16_t* b, float* d,
                    const sim::Options& options) {
  const std::vector<sim::Buffer> buffers = {
      input(a, 512, "a"), input(b, 256, "b"), {d, 512, "d", true, true}};
  return sim::launch({{}, 32, 0}, options, buffers, mma_kernel,
                     MmaParams{a, b, d, type == MatrixType::kF16});
}

sim::Report run_load_matrices(const uint16_t* x, uint32_t* out, int first, bool transposed,
                              const sim::Options& options) {
  return sim::launch({{}, 32, sizeof(LoadSmem)}, options,
                     {input(x, 512, "x"), {out, 512, "out", true}}, load_kernel,
                     LoadParams{x, out, first, transposed});
}

}  // namespace wlib::probe

// Instrumented. Warp-level matrix instructions.
#include "probe/planted.h"
#include "wlib/sm90/mma.h"
#include "wlib/sm90/sync.h"

namespace wlib::probe {

using Params = PlantedParams;
using sm90::thread_index;

static PlantedSmem& smem() { return sm90::dynamic_smem<PlantedSmem>(); }

// Loads from four floats per lane, `shift` of them further.
static void load(int shift) {
  uint32_t matrix[4];
  sm90::load_matrices(matrix, smem().value + 4 * sm90::lane_index() + shift);
}
static void fill() {
  for (int i = 0; i < 8; ++i) smem().value[8 * thread_index() + i] = 1.0f;
}

static const PlantedCase kCases[] = {
    {"lanes in matrix products of different types", "warp-divergence", 32, 1,
     [](Params p) {
       float d[4] = {};
       const uint32_t a[4] = {}, b[2] = {};
       if (p.bug && thread_index() == 5)
         sm90::mma_f16(d, a, b);
       else
         sm90::mma_bf16(d, a, b);
     }},
    {"a lane is missing from a matrix product", "deadlock", 32, 1,
     [](Params p) {
       float d[4] = {};
       const uint32_t a[4] = {}, b[2] = {};
       if (!p.bug || thread_index() != 5) sm90::mma_bf16(d, a, b);
     }},
    {"lanes in matrix loads of different kinds", "warp-divergence", 32, 1,
     [](Params p) {
       fill();
       sm90::warp_sync();
       uint32_t matrix[4];
       const float* row = smem().value + 4 * thread_index();
       if (p.bug && thread_index() == 5)
         sm90::load_matrices_transposed(matrix, row);
       else
         sm90::load_matrices(matrix, row);
     }},
    {"row of a matrix at eight bytes", "misaligned", 32, 1,
     [](Params p) {
       fill();
       sm90::warp_sync();
       load(p.bug ? 2 : 4);
     }},
    {"row of a matrix outside shared memory", "smem-bounds", 32, 1,
     [](Params p) {
       fill();
       sm90::warp_sync();
       load(p.bug ? 1 << 20 : 0);
     }},
    {"row of a matrix that nobody wrote", "smem-uninitialised", 32, 1,
     [](Params p) {
       if (!p.bug || thread_index() != 3) fill();
       sm90::warp_sync();
       load(0);
     }},
    {"rows of a matrix that other lanes still write", "smem-race", 32, 1,
     [](Params p) {
       fill();
       sm90::warp_sync();
       fill();
       if (!p.bug) sm90::warp_sync();
       load(0);
     }},
    {"row overwritten that another warp may still load", "smem-race", 64, 1,
     [](Params p) {
       fill();
       sm90::block_sync();
       if (thread_index() < 32) load(0);
       if (!p.bug) sm90::block_sync();
       if (thread_index() == 40) smem().value[0] = 2.0f;
     }},
};

std::span<const PlantedCase> planted_mma() { return kCases; }

}  // namespace wlib::probe

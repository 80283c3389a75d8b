// Instrumented. Plain loads and stores: bounds, initialisation, order.
#include "probe/planted.h"
#include "wlib/sm90/sync.h"

namespace wlib::probe {

using Params = PlantedParams;
using sm90::thread_index;

static PlantedSmem& smem() { return sm90::dynamic_smem<PlantedSmem>(); }

static const PlantedCase kCases[] = {
    {"store beyond shared memory", "smem-bounds", 32, 1,
     [](Params p) { smem().value[thread_index() + (p.bug ? sizeof(PlantedSmem) / 4 : 0)] = 1; }},
    {"load from an address that is not aligned for it", "misaligned", 32, 1,
     [](Params p) {
       smem().value[thread_index()] = 1;
       sm90::block_sync();
       const auto* wide = reinterpret_cast<const uint64_t*>(&smem().value[p.bug ? 1 : 2]);
       p.output[thread_index()] = float(*wide);
     }},
    {"load of what nobody wrote", "smem-uninitialised", 32, 1,
     [](Params p) {
       if (!p.bug) smem().value[thread_index()] = 1;
       p.output[thread_index()] = smem().value[thread_index()];
     }},
    {"barrier missing between store and load", "smem-race", 64, 1,
     [](Params p) {
       const int t = thread_index();
       smem().value[t] = 0;
       sm90::block_sync();
       smem().value[t] = float(t);
       if (!p.bug) sm90::block_sync();
       p.output[t] = smem().value[t ^ 32];
     }},
    {"barrier missing between load and store", "smem-race", 64, 1,
     [](Params p) {
       const int t = thread_index();
       smem().value[t] = float(t);
       sm90::block_sync();
       p.output[t] = smem().value[t ^ 32];
       if (!p.bug) sm90::block_sync();
       smem().value[t] = 0;
     }},
    {"warp_sync missing between lanes", "smem-race", 32, 1,
     [](Params p) {
       const int t = thread_index();
       smem().value[t] = 0;
       sm90::warp_sync();
       smem().value[t] = float(t);
       // A shuffle converges the lanes, but does not order memory.
       if (p.bug)
         sm90::warp_shuffle(0u, 0);
       else
         sm90::warp_sync();
       p.output[t] = smem().value[t ^ 1];
     }},
    {"load beyond a buffer", "global-bounds", 32, 1,
     [](Params p) { p.output[thread_index()] = p.input[thread_index() + (p.bug ? 64 * 128 : 0)]; }},
    {"store to an input", "global-readonly", 32, 1,
     [](Params p) {
       if (p.bug) const_cast<uint8_t*>(p.input)[thread_index()] = 1;
     }},
    {"load of an output that nobody wrote", "global-uninitialised", 32, 1,
     [](Params p) {
       if (!p.bug) p.output[thread_index()] = 1;
       p.output[thread_index()] += 1;
     }},
    {"two threads of a CTA store to the same place", "global-race", 64, 1,
     [](Params p) {
       const int t = thread_index();
       if (t < 32) p.output[t] = 1;
       if (!p.bug) sm90::block_sync();
       if (t >= 32) p.output[t - 32] = 2;
     }},
};

std::span<const PlantedCase> planted_memory() { return kCases; }

}  // namespace wlib::probe

// Instrumented. Launches that start before the one before them has finished.
#include "probe/planted.h"
#include "wlib/sm90/dependency.h"
#include "wlib/sm90/sync.h"

namespace wlib::probe {

using Params = PlantedParams;
using sm90::thread_index;

static PlantedSmem& smem() { return sm90::dynamic_smem<PlantedSmem>(); }

static const PlantedCase kCases[] = {
    {"what the launch before writes, read before the wait", "grid-dependency", 32, 1,
     [](Params p) {
       float value = p.bug ? float(p.input[thread_index()]) : 0;
       sm90::grid_dependency_wait();
       if (!p.bug) value = float(p.input[thread_index()]);
       p.output[thread_index()] = value;
     },
     true},
    {"what the launch before reads, written before the wait", "grid-dependency", 32, 1,
     [](Params p) {
       if (!p.bug) sm90::grid_dependency_wait();
       p.output[thread_index()] = 1;
       if (p.bug) sm90::grid_dependency_wait();
     },
     true},
    {"bulk copy before the wait", "grid-dependency", 32, 1,
     [](Params p) {
       const int t = thread_index();
       uint64_t& barrier = smem().barrier[0];
       if (t == 0) {
         sm90::mbarrier_init(barrier, 1);
         sm90::mbarrier_init_fence();
         if (!p.bug) sm90::grid_dependency_wait();
         sm90::mbarrier_arrive_expect_tx(barrier, 1024);
         sm90::bulk_load(smem().a, p.input, 1024, barrier);
       }
       sm90::block_sync();
       sm90::mbarrier_wait(barrier, 0);
       sm90::grid_dependency_wait();
       p.output[t] = float(smem().a[t]);
     },
     true},
    {"one thread waits for all, without a barrier", "grid-dependency", 64, 1,
     [](Params p) {
       if (thread_index() == 0) sm90::grid_dependency_wait();
       if (!p.bug) sm90::block_sync();
       p.output[thread_index()] = 1;
     },
     true},
    {"a CTA that never waits", "grid-dependency", 32, 2,
     [](Params p) {
       if (sm90::block_index_x() == 0 || !p.bug) sm90::grid_dependency_wait();
     },
     true},
    {"the next launch started before the wait", "grid-dependency", 32, 1,
     [](Params p) {
       if (p.bug) sm90::launch_dependents();
       sm90::grid_dependency_wait();
       if (!p.bug) sm90::launch_dependents();
     },
     true},
};

std::span<const PlantedCase> planted_dependency() { return kCases; }

}  // namespace wlib::probe

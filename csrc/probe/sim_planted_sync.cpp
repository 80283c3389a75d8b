// Instrumented. mbarriers, named barriers, warp operations, setmaxnreg.
#include "probe/planted.h"
#include "wlib/sm90/sync.h"

namespace wlib::probe {

using Params = PlantedParams;
using sm90::thread_index;

static PlantedSmem& smem() { return sm90::dynamic_smem<PlantedSmem>(); }
static uint64_t& barrier() { return smem().barrier[0]; }

// Thread 0 initialises the barrier for `arrivals`, all may use it.
static void init(uint32_t arrivals) {
  if (thread_index() == 0) sm90::mbarrier_init(barrier(), arrivals);
  sm90::block_sync();
}

static const PlantedCase kCases[] = {
    {"barrier never initialised", "mbarrier", 32, 1,
     [](Params p) {
       if (!p.bug) init(32);
       sm90::mbarrier_arrive(barrier());
     }},
    {"barrier used without order after its initialisation", "mbarrier", 64, 1,
     [](Params p) {
       // The relaxed flow of a ballot lets time pass, but orders nothing.
       if (thread_index() == 0) sm90::mbarrier_init(barrier(), 64);
       if (!p.bug)
         sm90::block_sync();
       else if (thread_index() >= 32)
         return;
       else
         sm90::warp_ballot(true);
       sm90::mbarrier_arrive(barrier());
     }},
    {"barrier initialised twice", "mbarrier", 32, 1,
     [](Params p) {
       init(1);
       if (p.bug) init(1);
     }},
    {"more arrivals than the barrier counts", "mbarrier", 32, 1,
     [](Params p) {
       if (thread_index() == 0) {
         sm90::mbarrier_init(barrier(), 1);
         sm90::mbarrier_arrive_expect_tx(barrier(), 16);
         if (p.bug) sm90::mbarrier_arrive(barrier());
       }
     }},
    {"plain store to a barrier", "mbarrier-object", 32, 1,
     [](Params p) {
       init(1);
       if (p.bug) barrier() = 0;
     }},
    {"more bytes expected than a barrier counts", "mbarrier-tx", 32, 1,
     [](Params p) {
       init(1);
       if (thread_index() == 0) sm90::mbarrier_arrive_expect_tx(barrier(), (1 << 20) - !p.bug);
     }},
    {"wait for the wrong parity", "deadlock", 32, 1,
     [](Params p) {
       init(32);
       sm90::mbarrier_arrive(barrier());
       sm90::mbarrier_wait(barrier(), p.bug);
     }},
    {"wait missing between arrivals and loads", "smem-race", 64, 1,
     [](Params p) {
       const int t = thread_index();
       smem().value[t] = 0;
       init(64);
       smem().value[t] = float(t);
       sm90::mbarrier_arrive(barrier());
       if (!p.bug) sm90::mbarrier_wait(barrier(), 0);
       p.output[t] = smem().value[t ^ 32];
     }},
    {"named barrier 16", "named-barrier", 32, 1,
     [](Params p) { sm90::barrier_sync(p.bug ? 16 : 15, 32); }},
    {"named barrier of half a warp", "named-barrier", 32, 1,
     [](Params p) { sm90::barrier_sync(1, p.bug ? 16 : 32); }},
    {"named barrier with two counts", "named-barrier", 128, 1,
     [](Params p) {
       const int t = thread_index();
       if (t < 32) sm90::barrier_arrive(1, 64);
       sm90::block_sync();
       if (t >= 96) sm90::barrier_sync(1, p.bug ? 96 : 64);
     }},
    {"bar.arrive does not wait", "smem-race", 64, 1,
     [](Params p) {
       const int t = thread_index();
       smem().value[t] = 0;
       sm90::block_sync();
       if (t < 32) smem().value[t] = float(t);
       if (t < 32 || p.bug)
         sm90::barrier_arrive(1, 64);
       else
         sm90::barrier_sync(1, 64);
       if (t >= 32) p.output[t] = smem().value[t - 32];
     }},
    {"lanes of a warp in different operations", "warp-divergence", 32, 1,
     [](Params p) {
       if (p.bug && thread_index() == 5)
         sm90::warp_sync();
       else
         sm90::warp_ballot(true);
     }},
    {"a lane is missing from a warp operation", "deadlock", 32, 1,
     [](Params p) {
       if (!p.bug || thread_index() != 5) sm90::warp_sync();
     }},
    {"setmaxnreg in the wrong direction", "registers", 256, 1,
     [](Params p) {
       if (p.bug)
         sm90::acquire_registers<24>();
       else
         sm90::release_registers<24>();
     }},
    {"setmaxnreg by one warp of a warpgroup", "registers", 128, 1,
     [](Params p) {
       if (!p.bug || thread_index() < 32) sm90::release_registers<24>();
     }},
    {"more registers asked for than released", "deadlock", 384, 1,
     [](Params p) {
       if (thread_index() < 128)
         sm90::release_registers<40>();
       else if (p.bug)
         sm90::acquire_registers<240>();
       else
         sm90::acquire_registers<232>();
     }},
};

std::span<const PlantedCase> planted_sync() { return kCases; }

}  // namespace wlib::probe

// Instrumented. Clusters: the barrier, remote shared memory, remote arrivals, exit.
#include "probe/planted.h"
#include "wlib/sm90/cluster.h"
#include "wlib/sm90/sync.h"

namespace wlib::probe {

using Params = PlantedParams;
using sm90::cluster_rank;
using sm90::thread_index;

static PlantedSmem& smem() { return sm90::dynamic_smem<PlantedSmem>(); }

static const PlantedCase kCases[] = {
    {"remote load without a cluster barrier", "smem-race", 32, 2,
     [](Params p) {
       const int t = thread_index(), peer = cluster_rank() ^ 1;
       smem().value[t] = 0;
       sm90::cluster_sync();
       smem().value[t] = float(t);
       if (p.bug)
         sm90::block_sync();
       else
         sm90::cluster_sync();
       p.output[cluster_rank() * 32 + t] = *sm90::cluster_map(&smem().value[t], peer);
       sm90::cluster_sync();
     }},
    {"arrival from another CTA, wait without cluster scope", "smem-race", 32, 2,
     [](Params p) {
       const int t = thread_index();
       smem().value[t] = 0;
       if (t == 0) sm90::mbarrier_init(smem().barrier[0], 32);
       sm90::cluster_sync();
       if (cluster_rank() == 0) {
         *sm90::cluster_map(&smem().value[t], 1) = float(t);
         sm90::mbarrier_arrive_cluster(smem().barrier[0], 1);
       } else {
         if (p.bug)
           sm90::mbarrier_wait(smem().barrier[0], 0);
         else
           sm90::mbarrier_wait_cluster(smem().barrier[0], 0);
         p.output[t] = smem().value[t];
       }
       sm90::cluster_sync();
     }},
    {"remote store beyond shared memory", "smem-bounds", 32, 2,
     [](Params p) {
       float* remote = sm90::cluster_map(&smem().value[thread_index()], 1);
       sm90::cluster_sync();
       if (cluster_rank() == 0) remote[p.bug ? sizeof(PlantedSmem) / 4 : 0] = 1;
       sm90::cluster_sync();
     }},
    {"a peer that is not in the cluster", "cluster", 32, 2,
     [](Params p) { sm90::cluster_map(&smem().value[0], p.bug ? 2 : 1); }},
    {"CTA exits while a peer stores to it", "exit", 32, 2,
     [](Params p) {
       if (cluster_rank() == 0) *sm90::cluster_map(&smem().value[thread_index()], 1) = 1;
       if (!p.bug) sm90::cluster_sync();
     }},
    {"CTA exits while a peer arrives on its barrier", "exit", 32, 2,
     [](Params p) {
       uint64_t& barrier = smem().barrier[0];
       if (thread_index() == 0) sm90::mbarrier_init(barrier, 32);
       sm90::cluster_sync();
       if (cluster_rank() == 0)
         sm90::mbarrier_arrive_cluster(barrier, 1);
       else if (!p.bug)
         sm90::mbarrier_wait_cluster(barrier, 0);
     }},
    {"two CTAs of a cluster store to the same place", "global-race", 32, 2,
     [](Params p) {
       if (cluster_rank() == 0 || p.bug) p.output[thread_index()] = 1;
     }},
    {"remote arrival without a cluster barrier after the initialisation", "mbarrier", 32, 2,
     [](Params p) {
       const int t = thread_index();
       uint64_t& barrier = smem().barrier[0];
       if (t == 0) sm90::mbarrier_init(barrier, 64);
       if (p.bug)
         sm90::block_sync();
       else
         sm90::cluster_sync();
       if (cluster_rank() == 1) sm90::mbarrier_arrive_cluster(barrier, 0);
       sm90::cluster_sync();
     }},
    {"cluster barrier: arrive twice", "cluster", 32, 2,
     [](Params p) {
       sm90::cluster_arrive();
       if (p.bug) sm90::cluster_arrive();
       sm90::cluster_wait();
     }},
    {"cluster barrier: wait without arrive", "cluster", 32, 2,
     [](Params p) {
       if (!p.bug) sm90::cluster_arrive();
       sm90::cluster_wait();
     }},
    {"cluster barrier: a thread waits elsewhere", "deadlock", 64, 2,
     [](Params p) {
       if (p.bug && cluster_rank() == 1 && thread_index() < 32) sm90::barrier_sync(1, 64);
       sm90::cluster_sync();
     }},
};

std::span<const PlantedCase> planted_cluster() { return kCases; }

}  // namespace wlib::probe

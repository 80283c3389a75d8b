// Instrumented. Bulk and tensor copies, bulk stores.
#include "probe/planted.h"
#include "wlib/sm90/cluster.h"
#include "wlib/sm90/sync.h"

namespace wlib::probe {

using Params = PlantedParams;
using sm90::thread_index;

static PlantedSmem& smem() { return sm90::dynamic_smem<PlantedSmem>(); }

// Thread 0 loads 128 bytes, all wait for them unless told not to.
static void load_bytes(const Params& p, bool fence, bool wait, uint32_t expected = 128) {
  uint64_t& barrier = smem().barrier[0];
  if (thread_index() == 0) {
    sm90::mbarrier_init(barrier, 1);
    if (fence) sm90::mbarrier_init_fence();
    sm90::mbarrier_arrive_expect_tx(barrier, expected);
    sm90::bulk_load(smem().a, p.input, 128, barrier);
  }
  sm90::block_sync();
  if (wait) sm90::mbarrier_wait(barrier, 0);
}

// Thread 0 stores the 16 bytes that it wrote itself.
static void store_bytes(const Params& p, bool fence, bool commit, bool wait) {
  if (thread_index() != 0) return;
  for (int i = 0; i < 4; ++i) smem().value[i] = float(i);
  if (fence) sm90::fence_proxy_async();
  sm90::bulk_store(p.output, smem().value, 16);
  if (commit) sm90::bulk_store_commit();
  if (wait) sm90::bulk_store_wait_read<0>();
}

static const PlantedCase kCases[] = {
    {"load of what a copy still brings", "smem-race-copy", 32, 1,
     [](Params p) {
       load_bytes(p, true, !p.bug);
       p.output[thread_index()] = smem().a[thread_index()];
       sm90::mbarrier_wait(smem().barrier[0], 0);
     }},
    {"a copy overwrites what threads still read", "smem-race", 32, 1,
     [](Params p) {
       load_bytes(p, true, true);
       p.output[thread_index()] = smem().a[thread_index()];
       // A ballot lets all lanes come here, but orders nothing.
       if (p.bug)
         sm90::warp_ballot(true);
       else
         sm90::block_sync();
       if (thread_index() == 0) {
         sm90::mbarrier_arrive_expect_tx(smem().barrier[0], 128);
         sm90::bulk_load(smem().a, p.input, 128, smem().barrier[0]);
         sm90::mbarrier_wait(smem().barrier[0], 1);
       }
     }},
    {"a copy overwrites what threads wrote without a proxy fence", "proxy-fence", 32, 1,
     [](Params p) {
       smem().a[thread_index()] = 1;
       if (!p.bug) sm90::fence_proxy_async();
       sm90::block_sync();
       load_bytes(p, true, true);
     }},
    {"copy on a barrier that was not fenced", "mbarrier", 32, 1,
     [](Params p) { load_bytes(p, !p.bug, true); }},
    {"more bytes expected than copied", "deadlock", 32, 1,
     [](Params p) { load_bytes(p, true, true, p.bug ? 144 : 128); }},
    {"nobody waits for a copy", "exit", 32, 1, [](Params p) { load_bytes(p, true, !p.bug); }},
    {"copy from a misaligned address", "bulk-copy", 32, 1,
     [](Params p) {
       p.input += p.bug;
       load_bytes(p, true, true);
     }},
    {"swizzled box at a boundary of 128 bytes", "bulk-copy", 32, 1,
     [](Params p) {
       uint64_t& barrier = smem().barrier[0];
       if (thread_index() != 0) return;
       sm90::mbarrier_init(barrier, 1);
       sm90::mbarrier_init_fence();
       sm90::mbarrier_arrive_expect_tx(barrier, 1024);
       sm90::tensor_load_2d(smem().a + (p.bug ? 128 : 1024), p.map, 0, 0, barrier);
       sm90::mbarrier_wait(barrier, 0);
     }},
    {"box with a swizzle of 48 bytes", "bulk-copy", 32, 1,
     [](Params p) {
       uint64_t& barrier = smem().barrier[0];
       if (thread_index() != 0) return;
       p.map.box_row_bytes = p.bug ? 48 : 64;
       sm90::mbarrier_init(barrier, 1);
       sm90::mbarrier_init_fence();
       sm90::mbarrier_arrive_expect_tx(barrier, 8 * p.map.box_row_bytes);
       sm90::tensor_load_2d(smem().a + 1024, p.map, 0, 0, barrier);
       sm90::mbarrier_wait(barrier, 0);
     }},
    {"box without swizzle at a boundary of 64 bytes", "bulk-copy", 32, 1,
     [](Params p) {
       uint64_t& barrier = smem().barrier[0];
       if (thread_index() != 0) return;
       p.map.swizzle = false;
       sm90::mbarrier_init(barrier, 1);
       sm90::mbarrier_init_fence();
       sm90::mbarrier_arrive_expect_tx(barrier, 1024);
       sm90::tensor_load_2d(smem().a + (p.bug ? 64 : 128), p.map, 0, 0, barrier);
       sm90::mbarrier_wait(barrier, 0);
     }},
    {"multicast to a peer whose release had no cluster scope", "smem-race", 32, 2,
     [](Params p) {
       uint64_t &full = smem().barrier[0], &empty = smem().barrier[1];
       const int t = thread_index();
       smem().a[t] = 1;
       sm90::fence_proxy_async();
       if (t == 0) {
         sm90::mbarrier_init(full, 1);
         sm90::mbarrier_init(empty, 64);
         sm90::mbarrier_init_fence();
       }
       sm90::cluster_sync();
       smem().value[t] = smem().a[t];
       sm90::mbarrier_arrive_cluster(empty, 0);
       if (t == 0) sm90::mbarrier_arrive_expect_tx(full, 128);
       if (sm90::cluster_rank() == 0) {
         if (p.bug)
           sm90::mbarrier_wait(empty, 0);
         else
           sm90::mbarrier_wait_cluster(empty, 0);
         if (t == 0) sm90::bulk_load_multicast(smem().a, p.input, 128, full, 3);
       }
       sm90::mbarrier_wait(full, 0);
       sm90::cluster_sync();
     }},
    {"bulk store without a proxy fence", "proxy-fence", 32, 1,
     [](Params p) { store_bytes(p, !p.bug, true, true); }},
    {"bulk store not committed", "exit", 32, 1,
     [](Params p) { store_bytes(p, true, !p.bug, true); }},
    {"bulk store not awaited", "exit", 32, 1, [](Params p) { store_bytes(p, true, true, !p.bug); }},
    {"bulk store still reads what is overwritten", "smem-overwrite-store", 32, 1,
     [](Params p) {
       store_bytes(p, true, true, !p.bug);
       if (thread_index() == 0) smem().value[0] = 1;
       sm90::bulk_store_wait_read<0>();
     }},
    {"bulk store and plain store to the same place", "global-race", 32, 1,
     [](Params p) {
       store_bytes(p, true, true, true);
       p.output[p.bug ? 0 : 4 + thread_index()] = 1;
     }},
};

std::span<const PlantedCase> planted_copy() { return kCases; }

}  // namespace wlib::probe

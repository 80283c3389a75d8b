// Instrumented. wgmma: registers, fences, shared operands.
#include "probe/planted.h"
#include "wlib/sm90/sync.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::probe {

using Params = PlantedParams;
using sm90::thread_index;
using Rs = sm90::WgmmaE4M3<8>::Rs;
using Ss = sm90::WgmmaE4M3<8>::Ss;

static PlantedSmem& smem() { return sm90::dynamic_smem<PlantedSmem>(); }

// Both operands, all zero.
static void fill(bool fence = true) {
  const int t = thread_index();
  for (int i = t; i < 64 * 128; i += 128) smem().a[i] = 0;
  for (int i = t; i < 8 * 128; i += 128) smem().b[i] = 0;
  if (fence) sm90::fence_proxy_async();
  sm90::block_sync();
}
static uint64_t descriptor(const uint8_t* tile) { return sm90::swizzled_tile_descriptor(tile); }

static const PlantedCase kCases[] = {
    {"accumulators read before the wait", "wgmma-register", 128, 1,
     [](Params p) {
       float d[4];
       fill();
       sm90::wgmma_fence();
       sm90::wgmma<Ss>(d, descriptor(smem().a), descriptor(smem().b), false);
       sm90::wgmma_commit();
       if (p.bug) p.output[thread_index()] = d[0];
       sm90::wgmma_wait<0>(d);
       if (!p.bug) p.output[thread_index()] = d[0];
     }},
    {"fragments rewritten before the wait", "wgmma-register", 128, 1,
     [](Params p) {
       float d[4];
       uint32_t a[4] = {1, 2, 3, 4};
       fill();
       sm90::wgmma_fence();
       sm90::wgmma<Rs>(d, a, descriptor(smem().b), false);
       sm90::wgmma_commit();
       if (p.bug) a[0] = p.input[0];
       sm90::wgmma_wait<0>(d);
     }},
    {"group not committed", "wgmma-wait", 128, 1,
     [](Params p) {
       float d[4];
       fill();
       sm90::wgmma_fence();
       sm90::wgmma<Ss>(d, descriptor(smem().a), descriptor(smem().b), false);
       if (!p.bug) sm90::wgmma_commit();
       sm90::wgmma_wait<0>(d);
     }},
    {"one group too many left in flight", "wgmma-wait", 128, 1,
     [](Params p) {
       float d[4];
       fill();
       sm90::wgmma_fence();
       sm90::wgmma<Ss>(d, descriptor(smem().a), descriptor(smem().b), false);
       sm90::wgmma_commit();
       if (p.bug)
         sm90::wgmma_wait<1>(d);
       else
         sm90::wgmma_wait<0>(d);
     }},
    {"fence missing after fragments were written", "wgmma-fence", 128, 1,
     [](Params p) {
       float d[4];
       uint32_t a[4];
       fill();
       if (p.bug) sm90::wgmma_fence();
       for (uint32_t& r : a) r = p.input[thread_index()];
       if (!p.bug) sm90::wgmma_fence();
       sm90::wgmma<Rs>(d, a, descriptor(smem().b), false);
       sm90::wgmma_commit();
       sm90::wgmma_wait<0>(d);
     }},
    {"operand overwritten before the wait", "smem-overwrite-wgmma", 128, 1,
     [](Params p) {
       float d[4];
       fill();
       sm90::wgmma_fence();
       sm90::wgmma<Ss>(d, descriptor(smem().a), descriptor(smem().b), false);
       sm90::wgmma_commit();
       sm90::block_sync();  // all have issued it
       if (p.bug && thread_index() == 0) smem().b[0] = 1;
       sm90::wgmma_wait<0>(d);
     }},
    {"one warp's wait speaks for four", "smem-overwrite-wgmma", 128, 1,
     [](Params p) {
       float d[4];
       fill();
       sm90::wgmma_fence();
       sm90::wgmma<Ss>(d, descriptor(smem().a), descriptor(smem().b), false);
       sm90::wgmma_commit();
       sm90::wgmma_wait<0>(d);
       if (!p.bug) sm90::block_sync();
       if (thread_index() == 0) smem().b[0] = 1;
     }},
    {"operand written without a proxy fence", "proxy-fence", 128, 1,
     [](Params p) {
       float d[4];
       fill(!p.bug);
       sm90::wgmma_fence();
       sm90::wgmma<Ss>(d, descriptor(smem().a), descriptor(smem().b), false);
       sm90::wgmma_commit();
       sm90::wgmma_wait<0>(d);
     }},
    {"descriptor without swizzle", "wgmma-descriptor", 128, 1,
     [](Params p) {
       float d[4];
       fill();
       const uint64_t b = descriptor(smem().b) & (p.bug ? ~(uint64_t(3) << 62) : ~uint64_t(0));
       sm90::wgmma_fence();
       sm90::wgmma<Ss>(d, descriptor(smem().a), b, false);
       sm90::wgmma_commit();
       sm90::wgmma_wait<0>(d);
     }},
    {"threads issue different wgmmas", "wgmma-divergence", 128, 1,
     [](Params p) {
       float d[4] = {0, 0, 0, 0};
       fill();
       sm90::wgmma_fence();
       sm90::wgmma<Ss>(d, descriptor(smem().a), descriptor(smem().b), p.bug && thread_index() == 7);
       sm90::wgmma_commit();
       sm90::wgmma_wait<0>(d);
     }},
    {"a warp issues no wgmma", "deadlock", 128, 1,
     [](Params p) {
       float d[4];
       fill();
       if (p.bug && thread_index() < 32) return;
       sm90::wgmma_fence();
       sm90::wgmma<Ss>(d, descriptor(smem().a), descriptor(smem().b), false);
       sm90::wgmma_commit();
       sm90::wgmma_wait<0>(d);
     }},
};

std::span<const PlantedCase> planted_wgmma() { return kCases; }

}  // namespace wlib::probe

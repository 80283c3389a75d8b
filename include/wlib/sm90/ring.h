// A ring of shared-memory stages between one producer thread and consumer warps. No PTX here: only
// the index and phase arithmetic, in one place.
#pragma once

#include "wlib/sm90/cluster.h"
#include "wlib/sm90/sync.h"

namespace wlib::sm90 {

// Position in the ring: which stage, and which pass over the ring modulo 2.
template <int kStages>
struct RingCursor {
  int stage = 0;
  uint32_t parity = 0;

  template <int kSteps = 1>
  WLIB_DEVICE void advance() {
    static_assert(kSteps <= kStages, "would wrap more than once");
    stage += kSteps;
    if (stage >= kStages) {
      stage -= kStages;
      parity ^= 1;
    }
  }
  // Past what another consumer takes.
  WLIB_DEVICE void skip(int steps) {
    stage += steps;
    parity ^= stage / kStages & 1;
    stage %= kStages;
  }
};

// If consumers take turns at the stages, a stage must always fall to the same one. Otherwise a
// consumer may wait for the second pass over a stage whose first pass is still in flight (copies
// complete out of order), and the parity it waits for, that of the phase before the first, passes
// at once. Or a consumer's first wait comes after the last one of the consumer before it, by a
// barrier: then every earlier pass has completed.
//
// kCtas > 1: the producers of a cluster's CTAs fill each other's stages. They wait until a stage
// has been read in all of them, and `readers` counts the warps of all.
template <int kStages>
struct Ring {
  uint64_t full[kStages];   // `writers` arrivals plus the bytes of the copies
  uint64_t empty[kStages];  // `readers` arrivals, one per consumer warp that reads the stage

  // One writer: the producer's expect_tx. More: warps that write parts of the stage themselves.
  WLIB_DEVICE void init(int readers, int writers = 1) {
    debug_name(full, sizeof full, "ring.full");
    debug_name(empty, sizeof empty, "ring.empty");
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full[i], writers);
      mbarrier_init(empty[i], readers);
    }
    mbarrier_init_fence();
  }
  // Producer. In the first pass nothing was released yet: the opposite parity passes at once.
  template <int kCtas = 1>
  WLIB_DEVICE void wait_empty(RingCursor<kStages> at) {
    const uint32_t before = at.parity ^ 1;
    if constexpr (kCtas == 1)
      mbarrier_wait(empty[at.stage], before);
    else
      mbarrier_wait_cluster(empty[at.stage], before);
  }
  WLIB_DEVICE uint64_t& expect(RingCursor<kStages> at, uint32_t bytes) {
    mbarrier_arrive_expect_tx(full[at.stage], bytes);
    return full[at.stage];
  }
  // What a warp has written itself, each lane behind its fence for the async proxy.
  WLIB_DEVICE void hand_over(RingCursor<kStages> at) {
    warp_sync();  // one lane's arrival speaks for the writes of the whole warp
    if (elect()) mbarrier_arrive(full[at.stage]);
  }
  // Consumer.
  WLIB_DEVICE void wait_full(RingCursor<kStages> at) { mbarrier_wait(full[at.stage], at.parity); }
  template <int kCtas = 1>
  WLIB_DEVICE void release(RingCursor<kStages> at) {
    warp_sync();  // one lane's arrival speaks for the reads of the whole warp
    if constexpr (kCtas == 1) {
      if (elect()) mbarrier_arrive(empty[at.stage]);
    } else {
      if (lane_index() < kCtas) mbarrier_arrive_cluster(empty[at.stage], lane_index());
    }
  }
};

}  // namespace wlib::sm90

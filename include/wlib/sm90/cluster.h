// Thread block clusters along x: barrier, each other's shared memory, remote arrivals.
//
// A CTA must not exit while a peer may still touch its shared memory: end with a cluster_sync(), or
// let the last accesses of the peers be ordered before something the CTA waits for.
#pragma once

#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

#if WLIB_ON_DEVICE

// 0 and 1 in a launch without clusters.
WLIB_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}
WLIB_DEVICE int cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return int(size);
}

// A barrier of all threads of the cluster that have not exited, orders their memory accesses.
WLIB_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
WLIB_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// The same variable in the shared memory of CTA `rank`, for plain loads and stores.
template <class T>
WLIB_DEVICE T* cluster_map(T* local, int rank) {
  uint64_t mapped;
  asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(local), "r"(rank));
  return reinterpret_cast<T*>(mapped);
}
// Arrives on CTA `rank`'s copy of `bar` and releases what this thread did to all of the cluster.
WLIB_DEVICE void mbarrier_arrive_cluster(uint64_t& bar, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(shared_address(&bar)),
      "r"(rank)
      : "memory");
}
// mbarrier_wait that also acquires what arrivals from other CTAs released.
WLIB_DEVICE void mbarrier_wait_cluster(uint64_t& bar, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;\n"
      "}" ::"r"(shared_address(&bar)),
      "r"(parity)
      : "memory");
}

#else

inline int cluster_rank() { return sim::dev::cluster_rank(); }
inline int cluster_size() { return sim::dev::cluster_size(); }
inline void cluster_arrive() { sim::dev::cluster_arrive(); }
inline void cluster_wait() { sim::dev::cluster_wait(); }
template <class T>
T* cluster_map(T* local, int rank) {
  return static_cast<T*>(sim::dev::cluster_map(local, rank));
}
inline void mbarrier_arrive_cluster(uint64_t& bar, int rank) {
  sim::dev::mbarrier_arrive_cluster(&bar, rank);
}
inline void mbarrier_wait_cluster(uint64_t& bar, uint32_t parity) {
  sim::dev::mbarrier_wait_cluster(&bar, parity);
}

#endif

WLIB_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace wlib::sm90

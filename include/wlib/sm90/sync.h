// mbarriers, named barriers, warp operations, proxy fences, register reallocation: all within one
// CTA (cluster.h has what reaches further).
#pragma once

#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

#if WLIB_ON_DEVICE

WLIB_DEVICE void mbarrier_init(uint64_t& bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&bar)), "r"(arrivals)
               : "memory");
}
// Makes initialised mbarriers visible to the async proxy; threads still need a barrier.
WLIB_DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
WLIB_DEVICE void mbarrier_arrive(uint64_t& bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&bar)) : "memory");
}
WLIB_DEVICE void mbarrier_arrive_expect_tx(uint64_t& bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&bar)),
               "r"(bytes)
               : "memory");
}
// Returns once the phase of the given parity has completed; parity 1 passes on a fresh barrier.
WLIB_DEVICE void mbarrier_wait(uint64_t& bar, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;\n"
      "}" ::"r"(shared_address(&bar)),
      "r"(parity)
      : "memory");
}

// All threads of the CTA.
WLIB_DEVICE void block_sync() { __syncthreads(); }
// Barrier 0 is block_sync's.
WLIB_DEVICE void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
WLIB_DEVICE void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Warp operations: all 32 lanes take part. Only warp_sync orders memory.
WLIB_DEVICE void warp_sync() { __syncwarp(); }
WLIB_DEVICE uint32_t warp_shuffle(uint32_t value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
WLIB_DEVICE uint32_t warp_shuffle_xor(uint32_t value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
WLIB_DEVICE uint32_t warp_ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }
// True in exactly one lane of a converged warp; which one is unspecified.
WLIB_DEVICE bool elect() {
  uint32_t leader;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}"
      : "=r"(leader));
  return leader != 0;
}

// Orders this thread's generic shared-memory accesses before later async-proxy ones (wgmma, bulk
// copies).
WLIB_DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// setmaxnreg, by every warp of a warpgroup. acquire waits until others have released enough.
template <int kCount>
WLIB_DEVICE void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
WLIB_DEVICE void acquire_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

#else

inline void mbarrier_init(uint64_t& bar, uint32_t arrivals) {
  sim::dev::mbarrier_init(&bar, arrivals);
}
inline void mbarrier_init_fence() { sim::dev::mbarrier_init_fence(); }
inline void mbarrier_arrive(uint64_t& bar) { sim::dev::mbarrier_arrive(&bar); }
inline void mbarrier_arrive_expect_tx(uint64_t& bar, uint32_t bytes) {
  sim::dev::mbarrier_arrive_expect_tx(&bar, bytes);
}
inline void mbarrier_wait(uint64_t& bar, uint32_t parity) { sim::dev::mbarrier_wait(&bar, parity); }
inline void block_sync() { sim::dev::block_sync(); }
inline void barrier_sync(int id, int threads) { sim::dev::barrier_sync(id, threads); }
inline void barrier_arrive(int id, int threads) { sim::dev::barrier_arrive(id, threads); }
inline void warp_sync() { sim::dev::warp_sync(); }
inline uint32_t warp_shuffle(uint32_t value, int lane) {
  return sim::dev::warp_shuffle(value, lane);
}
inline uint32_t warp_shuffle_xor(uint32_t value, int lane_mask) {
  return sim::dev::warp_shuffle(value, lane_index() ^ lane_mask);
}
inline uint32_t warp_ballot(bool predicate) { return sim::dev::warp_ballot(predicate); }
inline bool elect() { return sim::dev::warp_elect(); }
inline void fence_proxy_async() { sim::dev::fence_proxy_async(); }
template <int kCount>
void release_registers() {
  sim::dev::set_max_registers(kCount, false);
}
template <int kCount>
void acquire_registers() {
  sim::dev::set_max_registers(kCount, true);
}

#endif

WLIB_DEVICE float warp_shuffle(float value, int lane) {
  return __builtin_bit_cast(float, warp_shuffle(__builtin_bit_cast(uint32_t, value), lane));
}
WLIB_DEVICE float warp_shuffle_xor(float value, int lane_mask) {
  return __builtin_bit_cast(float,
                            warp_shuffle_xor(__builtin_bit_cast(uint32_t, value), lane_mask));
}

}  // namespace wlib::sm90

// The asynchronous copy engines: 1-D bulk copies, 2-D tensor tiles (TMA), bulk stores.
#pragma once

#include "wlib/sm90/platform.h"
#if WLIB_ON_DEVICE
#include <cuda.h>
#endif

namespace wlib::sm90 {

#if WLIB_ON_DEVICE

using TensorMap = CUtensorMap;  // declare kernel parameters that hold one WLIB_GRID_CONSTANT

// All loads: addresses and sizes are multiples of 16 bytes; they count `bytes` off the mbarrier's
// expected bytes. The multicast forms write the same offset of every CTA in `cta_mask` and signal
// the mbarrier at the same offset there.
WLIB_DEVICE void bulk_load(void* smem, const void* global, uint32_t bytes, uint64_t& bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(smem)),
      "l"(global), "r"(bytes), "r"(shared_address(&bar))
      : "memory");
}
WLIB_DEVICE void bulk_load_multicast(void* smem, const void* global, uint32_t bytes, uint64_t& bar,
                                     uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(smem)),
      "l"(global), "r"(bytes), "r"(shared_address(&bar)), "h"(cta_mask)
      : "memory");
}
// Box of `map` at (column, row); elements outside the tensor arrive as zeros and count as bytes.
WLIB_DEVICE void tensor_load_2d(void* smem, const TensorMap& map, int column, int row,
                                uint64_t& bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(smem)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(&bar))
      : "memory");
}
WLIB_DEVICE void tensor_load_2d_multicast(void* smem, const TensorMap& map, int column, int row,
                                          uint64_t& bar, uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
      "cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(smem)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(&bar)), "h"(cta_mask)
      : "memory");
}

// Fetches the map itself, which is part of the launch, ahead of its first use.
WLIB_DEVICE void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Brings the 32 bytes around an address into L2, ahead of a load of them.
WLIB_DEVICE void prefetch_global(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory");
}

WLIB_DEVICE void bulk_store(void* global, const void* smem, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared_address(smem)), "r"(bytes)
               : "memory");
}
WLIB_DEVICE void bulk_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until the shared memory of all but the newest kPending groups of this thread has been read.
template <int kPending>
WLIB_DEVICE void bulk_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

#else

using TensorMap = sim::dev::TensorMap2D;

inline void bulk_load(void* smem, const void* global, uint32_t bytes, uint64_t& bar) {
  sim::dev::bulk_load(smem, global, bytes, &bar);
}
inline void bulk_load_multicast(void* smem, const void* global, uint32_t bytes, uint64_t& bar,
                                uint16_t cta_mask) {
  sim::dev::bulk_load_multicast(smem, global, bytes, &bar, cta_mask);
}
inline void tensor_load_2d(void* smem, const TensorMap& map, int column, int row, uint64_t& bar) {
  sim::dev::tensor_load_2d(smem, map, column, row, &bar);
}
inline void tensor_load_2d_multicast(void* smem, const TensorMap& map, int column, int row,
                                     uint64_t& bar, uint16_t cta_mask) {
  sim::dev::tensor_load_2d_multicast(smem, map, column, row, &bar, cta_mask);
}
inline void prefetch_tensor_map(const TensorMap&) {}
inline void prefetch_global(const void*) {}
inline void bulk_store(void* global, const void* smem, uint32_t bytes) {
  sim::dev::bulk_store(global, smem, bytes);
}
inline void bulk_store_commit() { sim::dev::bulk_commit(); }
template <int kPending>
void bulk_store_wait_read() {
  sim::dev::bulk_wait_read(kPending);
}

#endif

}  // namespace wlib::sm90

// What the host branch of wlib/sm90/*.h calls. One function per PTX primitive; semantics in
// docs/simulator.md. No templates: this is the whole seam between kernels and simulator.
#pragma once

#include <cstddef>
#include <cstdint>

namespace wlib::sim::dev {

int thread_index();
int block_index(int axis);
int grid_size(int axis);
void* shared_base();
uint32_t shared_address(
    const void* pointer);  // 32-bit shared-window address, as descriptors need it
void debug_name(const void* pointer, size_t bytes, const char* name);

void mbarrier_init(uint64_t* bar, uint32_t arrivals);
void mbarrier_init_fence();
void mbarrier_arrive(uint64_t* bar);
void mbarrier_arrive_expect_tx(uint64_t* bar, uint32_t bytes);
void mbarrier_wait(uint64_t* bar, uint32_t parity);

void block_sync();
void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);
void warp_sync();
uint32_t warp_shuffle(uint32_t value, int source_lane);
uint32_t warp_ballot(bool predicate);
bool warp_elect();
void fence_proxy_async();
void set_max_registers(int count, bool increase);

void grid_dependency_wait();
void launch_dependents();

int cluster_rank();
int cluster_size();
void cluster_arrive();
void cluster_wait();
void* cluster_map(const void* local, int rank);
void mbarrier_arrive_cluster(uint64_t* bar, int rank);
void mbarrier_wait_cluster(uint64_t* bar, uint32_t parity);

struct TensorMap2D {  // the fields of a CUtensorMap the model needs
  const uint8_t* base;
  uint64_t row_bytes, rows;  // logical extent; reads beyond it return zeros
  uint64_t row_stride_bytes;
  uint32_t box_row_bytes, box_rows;
  uint32_t element_bytes;
  bool swizzle;  // of the bytes of a box's row: 32, 64 or 128
};
void bulk_load(void* smem, const void* global, uint32_t bytes, uint64_t* bar);
void bulk_load_multicast(void* smem, const void* global, uint32_t bytes, uint64_t* bar,
                         uint16_t cta_mask);
void tensor_load_2d(void* smem, const TensorMap2D& map, int column, int row, uint64_t* bar);
void tensor_load_2d_multicast(void* smem, const TensorMap2D& map, int column, int row,
                              uint64_t* bar, uint16_t cta_mask);
void bulk_store(void* global, const void* smem, uint32_t bytes);
void bulk_commit();
void bulk_wait_read(int pending);

enum class Element : uint8_t { kE4M3, kE5M2, kBF16, kF16 };
struct WgmmaShape {  // m64 n{n} k{32 bytes}, derived from CuTe's MMA_Traits
  int n, k, d_regs;
  bool a_in_registers;
  bool mn_major;            // both operands in shared memory; else K-major
  Element a, b;             // both of one size
  bool half_d;              // two FP16 numbers in each of d_regs, else one FP32 number
  const uint16_t* a_coord;  // [128][values of A per thread] -> m + 64 * k   (register A only)
  const uint16_t* d_coord;  // [128][numbers of D per thread] -> m + 64 * n
};
void wgmma_fence();
void wgmma_issue(const WgmmaShape& shape, float* d, const uint32_t* a_regs, uint64_t a_desc,
                 uint64_t b_desc, bool accumulate);
void wgmma_commit();
void wgmma_wait(int pending);

// By whole warps; fragments as in wlib/sm90/mma.h. `type` has 16 bits.
void warp_mma(Element type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void load_matrices(uint32_t (&matrix)[4], const void* row, bool transposed);

}  // namespace wlib::sim::dev

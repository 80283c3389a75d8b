// Instrumented.
#include "probe/sim_values.h"

#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>
#include <stdexcept>

#include "wlib/sm90/cluster.h"
#include "wlib/sm90/half2.h"
#include "wlib/sm90/sync.h"
#include "wlib/sm90/tensor_map.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::probe {
namespace {

using sm90::thread_index;

sim::Buffer input(const void* data, size_t bytes, const char* name) {
  return {const_cast<void*>(data), bytes, name, false};
}

// Rows of 128 bytes as wgmma reads them, along k or along the operand's rows: then in boxes, each
// with all of k. CuTe's atom counts bits; this makes it count elements.
template <class Element, int kRows, bool kMnMajor = false>
auto swizzled_layout() {
  namespace gmma = cute::SM90::GMMA;
  const cute::Shape<cute::Int<kRows>, cute::Int<128 / sizeof(Element)>> shape;
  if constexpr (kMnMajor)
    return cute::as_position_independent_swizzle_layout(cute::tile_to_shape(
        gmma::Layout_MN_SW128_Atom<Element>{}, shape, cute::Step<cute::_2, cute::_1>{}));
  else
    return cute::as_position_independent_swizzle_layout(
        cute::tile_to_shape(gmma::Layout_K_SW128_Atom<Element>{}, shape));
}

struct WgmmaParams {
  const uint8_t *a, *b;
  float* d;
};

template <int kN>
struct WgmmaSmem {
  alignas(1024) uint8_t a[64 * 128];
  alignas(1024) uint8_t b[kN * 128];
};

// Element as CuTe calls it and as its bits.
template <class Element_, class Bits_, class Rs_, class Ss_, class Fragment_, bool kMn_ = false>
struct WgmmaCase {
  static constexpr bool kMnMajor = kMn_;
  using Element = Element_;
  using Bits = Bits_;
  using Rs = Rs_;
  using Ss = Ss_;
  using Fragment = Fragment_;
  static constexpr int kN = sm90::kAccumulators<Rs> * 2;
};
template <int kN>
using E4M3Case = WgmmaCase<cute::float_e4m3_t, uint8_t, typename sm90::WgmmaE4M3<kN>::Rs,
                           typename sm90::WgmmaE4M3<kN>::Ss, cute::SM90::GMMA::ALayout_64x32>;
// Without register operands.
using HalfCase = WgmmaCase<cute::float_e4m3_t, uint8_t, sm90::WgmmaE4M3<64>::Rs,
                           sm90::WgmmaE4M3<64>::SsHalf, cute::SM90::GMMA::ALayout_64x32>;
using BF16Case = WgmmaCase<cute::bfloat16_t, uint16_t, sm90::WgmmaBF16<64>::Rs,
                           sm90::WgmmaBF16<64>::Ss, cute::SM90::GMMA::ALayout_64x16>;
using F16Case = WgmmaCase<cute::half_t, uint16_t, sm90::WgmmaF16<64>::Rs, sm90::WgmmaF16<64>::Ss,
                          cute::SM90::GMMA::ALayout_64x16>;
// Of 256 columns, without register operands.
template <class Element, class Op, bool kMnMajor>
using WideCase = WgmmaCase<Element, uint16_t, Op, Op, cute::SM90::GMMA::ALayout_64x16, kMnMajor>;

// This thread's A fragments of all k steps, placed by CuTe's layout.
template <class C>
void load_fragments(const typename C::Bits* a, uint32_t (&out)[4][4]) {
  constexpr int kPerRegister = 4 / sizeof(typename C::Bits),
                kColumns = 128 / sizeof(typename C::Bits);
  constexpr int kBits = 8 * sizeof(typename C::Bits), kStep = kColumns / 4;
  const typename C::Fragment fragment;
  for (int i = 0; i < 16 * kPerRegister; ++i) {
    const int step = i / (4 * kPerRegister), value = i % (4 * kPerRegister);
    uint32_t& to = out[step][value / kPerRegister];
    if (value % kPerRegister == 0) to = 0;
    const int at = fragment(thread_index(), value), row = at % 64, column = step * kStep + at / 64;
    to |= uint32_t(a[row * kColumns + column]) << value % kPerRegister * kBits;
  }
}

template <class C, bool kRegisterA>
void wgmma_kernel(WgmmaParams p) {
  using Bits = typename C::Bits;
  constexpr int kColumns = 128 / sizeof(Bits);
  auto& s = sm90::dynamic_smem<WgmmaSmem<C::kN>>();
  const auto* a = reinterpret_cast<const Bits*>(p.a);
  const auto* b = reinterpret_cast<const Bits*>(p.b);
  const auto at_a = swizzled_layout<typename C::Element, 64, C::kMnMajor>();
  const auto at_b = swizzled_layout<typename C::Element, C::kN, C::kMnMajor>();
  for (int i = thread_index(); i < C::kN * kColumns; i += 128) {
    reinterpret_cast<Bits*>(s.b)[at_b(i / kColumns, i % kColumns)] = b[i];
  }
  for (int i = thread_index(); i < 64 * kColumns; i += 128) {
    reinterpret_cast<Bits*>(s.a)[at_a(i / kColumns, i % kColumns)] = a[i];
  }
  sm90::fence_proxy_async();
  sm90::block_sync();

  uint32_t fragments[4][4];
  using Op = std::conditional_t<kRegisterA, typename C::Rs, typename C::Ss>;
  using Number = sm90::Accumulator<Op>;
  Number d[sm90::kAccumulators<Op>];
  load_fragments<C>(a, fragments);
  const auto descriptor = [](const uint8_t* tile) {
    return C::kMnMajor ? sm90::mn_major_tile_descriptor(tile, 64 * 128)
                       : sm90::swizzled_tile_descriptor(tile);
  };
  const uint64_t tile_a = descriptor(s.a), tile_b = descriptor(s.b);
  sm90::wgmma_fence();
  for (int step = 0; step < 4; ++step) {
    const uint64_t advance =
        step * (C::kMnMajor ? sm90::kMnDescriptorKStep : sm90::kDescriptorKStep);
    if constexpr (kRegisterA)
      sm90::wgmma<typename C::Rs>(d, fragments[step], tile_b + advance, step != 0);
    else
      sm90::wgmma<typename C::Ss>(d, tile_a + advance, tile_b + advance, step != 0);
  }
  sm90::wgmma_commit();
  sm90::wgmma_wait<0>(d);
  for (int v = 0; v < sm90::kAccumulators<typename C::Rs>; ++v) {
    const int row = sm90::accumulator_row(thread_index(), v),
              column = sm90::accumulator_column(thread_index(), v);
    float& to = p.d[row * C::kN + column];
    if constexpr (std::is_same_v<Number, float>) {
      to = d[v];
    } else {
      const float2 two = sm90::unpack_half2(d[v / 2]);
      to = v % 2 ? two.y : two.x;
    }
  }
}

template <class C>
sim::Report run_case(bool register_a, const WgmmaParams& p, const sim::Options& options) {
  const std::vector<sim::Buffer> buffers = {
      input(p.a, 64 * 128, "a"), input(p.b, C::kN * 128, "b"), {p.d, 64 * C::kN * 4, "d", true}};
  return sim::launch({{}, 128, sizeof(WgmmaSmem<C::kN>)}, options, buffers,
                     register_a ? wgmma_kernel<C, true> : wgmma_kernel<C, false>, p);
}

}  // namespace

sim::Report run_wgmma(MatrixType type, int n, bool register_a, const uint8_t* a, const uint8_t* b,
                      float* d, const sim::Options& options) {
  const WgmmaParams p{a, b, d};
  if (type == MatrixType::kBF16 && n == 64) return run_case<BF16Case>(register_a, p, options);
  if (type == MatrixType::kF16 && n == 64) return run_case<F16Case>(register_a, p, options);
  if (n == 256 && !register_a) {
    using BF16 = sm90::WgmmaBF16<256>;
    using F16 = sm90::WgmmaF16<256>;
    switch (type) {
      case MatrixType::kBF16:
        return run_case<WideCase<cute::bfloat16_t, BF16::Ss, false>>(false, p, options);
      case MatrixType::kBF16Mn:
        return run_case<WideCase<cute::bfloat16_t, BF16::SsMn, true>>(false, p, options);
      case MatrixType::kF16:
        return run_case<WideCase<cute::half_t, F16::Ss, false>>(false, p, options);
      case MatrixType::kF16Mn:
        return run_case<WideCase<cute::half_t, F16::SsMn, true>>(false, p, options);
      default: break;
    }
  }
  if (type == MatrixType::kE4M3Half && n == 64 && !register_a)
    return run_case<HalfCase>(false, p, options);
  if (type == MatrixType::kE4M3) {
    switch (n) {
      case 8: return run_case<E4M3Case<8>>(register_a, p, options);
      case 16: return run_case<E4M3Case<16>>(register_a, p, options);
      case 32: return run_case<E4M3Case<32>>(register_a, p, options);
      case 64: return run_case<E4M3Case<64>>(register_a, p, options);
      case 128: return run_case<E4M3Case<128>>(register_a, p, options);
      case 256: return run_case<E4M3Case<256>>(register_a, p, options);
    }
  }
  throw std::invalid_argument("no wgmma of this type and n");
}

namespace {

struct TensorParams {
  sm90::TensorMap map;
  bool swizzle;
  int row_bytes, column, row;
  uint8_t* out;
};
struct TensorSmem {
  alignas(1024) uint8_t box[kTensorBoxRows * 128];
  uint64_t barrier;
};

template <int kBytes>
int swizzled_byte(int i) {
  using Byte = cute::float_e4m3_t;
  using Atom = std::conditional_t<
      kBytes == 32, cute::SM90::GMMA::Layout_K_SW32_Atom<Byte>,
      std::conditional_t<kBytes == 64, cute::SM90::GMMA::Layout_K_SW64_Atom<Byte>,
                         cute::SM90::GMMA::Layout_K_SW128_Atom<Byte>>>;
  const auto at = cute::as_position_independent_swizzle_layout(
      cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kTensorBoxRows>, cute::Int<kBytes>>{}));
  return at(i / kBytes, i % kBytes);
}

void tensor_kernel(TensorParams p) {
  auto& s = sm90::dynamic_smem<TensorSmem>();
  if (thread_index() == 0) {
    sm90::mbarrier_init(s.barrier, 1);
    sm90::mbarrier_init_fence();
    sm90::mbarrier_arrive_expect_tx(s.barrier, kTensorBoxRows * p.row_bytes);
    sm90::tensor_load_2d(s.box, p.map, p.column, p.row, s.barrier);
  }
  sm90::block_sync();
  sm90::mbarrier_wait(s.barrier, 0);
  const auto at = p.row_bytes == 32   ? swizzled_byte<32>
                  : p.row_bytes == 64 ? swizzled_byte<64>
                                      : swizzled_byte<128>;
  for (int i = thread_index(); i < kTensorBoxRows * p.row_bytes; i += 128)
    p.out[i] = s.box[p.swizzle ? at(i) : i];
}

struct PhaseParams {
  int phases, parity;
};

void phase_kernel(PhaseParams p) {
  auto& s = sm90::dynamic_smem<TensorSmem>();
  if (thread_index() == 0) sm90::mbarrier_init(s.barrier, 32);
  sm90::block_sync();
  for (int i = 0; i < p.phases; ++i) {
    sm90::mbarrier_arrive(s.barrier);
    sm90::mbarrier_wait(s.barrier, i % 2);
  }
  sm90::mbarrier_wait(s.barrier, p.parity);
}

struct OutParams {
  float* out;
};

void warp_kernel(OutParams p) {
  const int lane = sm90::lane_index();
  float* out = p.out + thread_index() * 5;
  out[0] = float(sm90::warp_shuffle(uint32_t(lane * lane), 3));
  out[1] = sm90::warp_shuffle_xor(float(lane) + 0.5f, 4);
  out[2] = float(sm90::warp_ballot(lane % 3 == 0) & 0xffff);
  out[3] = sm90::elect();
  out[4] = float(sm90::warp_index());
}

struct ClusterParams {
  const uint8_t* x;
  float* out;
  uint8_t* gathered;
};
struct ClusterSmem {
  alignas(16) uint8_t share[kShareBytes];
  float value[8][32];  // [source]
  uint64_t stored, loaded;
};

void cluster_kernel(ClusterParams p) {
  auto& s = sm90::dynamic_smem<ClusterSmem>();
  const int t = thread_index(), rank = sm90::cluster_rank(), size = sm90::cluster_size();
  if (t == 0) {
    sm90::mbarrier_init(s.stored, 32 * size);
    sm90::mbarrier_init(s.loaded, 1);
    sm90::mbarrier_init_fence();
  }
  sm90::cluster_sync();
  if (t == 0) {
    const int bytes = kShareBytes / size;
    sm90::mbarrier_arrive_expect_tx(s.loaded, kShareBytes);
    sm90::bulk_load_multicast(s.share + rank * bytes, p.x + rank * bytes, bytes, s.loaded,
                              uint16_t((1 << size) - 1));
  }
  for (int other = 0; other < size; ++other) {
    *sm90::cluster_map(&s.value[rank][t], other) = float(1000 * rank + 100 * other + t);
    sm90::mbarrier_arrive_cluster(s.stored, other);
  }
  sm90::mbarrier_wait_cluster(s.stored, 0);
  for (int source = 0; source < size; ++source)
    p.out[(rank * size + source) * 32 + t] = s.value[source][t];
  sm90::mbarrier_wait(s.loaded, 0);
  for (int i = t; i < kShareBytes; i += 32) p.gathered[rank * kShareBytes + i] = s.share[i];
}

struct GridParams {
  int32_t* out;
  int items, shift;
};

void grid_kernel(GridParams p) {
  auto& s = sm90::dynamic_smem<TensorSmem>();
  s.box[thread_index()] = uint8_t(thread_index());  // every CTA finds its shared memory fresh
  for (int i = sm90::block_index_x(); i < p.items; i += sm90::grid_size_x()) {
    int32_t* out = p.out + 2 * (sm90::block_index_y() * p.items + i);
    if (thread_index() == 0) out[0] = sm90::block_index_x();
    if (thread_index() == 1) out[1 + p.shift] = sm90::grid_size_x();
  }
}

}  // namespace

sim::Report run_tensor_load(const TensorLoad& t, uint8_t* out, const sim::Options& options) {
  TensorParams p{{}, t.swizzle, t.row_bytes, t.column, t.row, out};
  const uint32_t element = t.element_bytes;
  sm90::make_tensor_map(
      &p.map, {t.x, uint64_t(t.rows), uint64_t(t.columns), uint64_t(t.stride_bytes), kTensorBoxRows,
               t.row_bytes / element, element, t.swizzle});
  const size_t bytes = size_t(t.rows - 1) * t.stride_bytes + t.columns * element;
  return sim::launch(
      {{}, 128, sizeof(TensorSmem)}, options,
      {input(t.x, bytes, "x"), {out, size_t(kTensorBoxRows * t.row_bytes), "out", true}},
      tensor_kernel, p);
}

sim::Report run_phase_wait(int phases, int parity, const sim::Options& options) {
  return sim::launch({{}, 32, sizeof(TensorSmem)}, options, {}, phase_kernel,
                     PhaseParams{phases, parity});
}

sim::Report run_warp(float* out, const sim::Options& options) {
  return sim::launch({{}, 64, 0}, options, {{out, 64 * 5 * 4, "out", true}}, warp_kernel,
                     OutParams{out});
}

sim::Report run_cluster(int cluster, const uint8_t* x, float* out, uint8_t* gathered,
                        const sim::Options& options) {
  const std::vector<sim::Buffer> buffers = {
      input(x, kShareBytes, "x"),
      {out, size_t(cluster * cluster * 32 * 4), "out", true},
      {gathered, size_t(cluster * kShareBytes), "gathered", true}};
  return sim::launch({{cluster, 1, 1}, 32, sizeof(ClusterSmem), cluster}, options, buffers,
                     cluster_kernel, ClusterParams{x, out, gathered});
}

sim::Report run_grid(int ctas, int items, int shift, int32_t* out, const sim::Options& options) {
  const sim::LaunchConfig config{{ctas, 2, 1}, 64, sizeof(TensorSmem)};
  return sim::launch(config, options, {{out, size_t(items) * 16, "out", true}}, grid_kernel,
                     GridParams{out, items, shift});
}

}  // namespace wlib::probe

// Warpgroup MMA on CuTe's instruction wrappers, whose layouts are what the simulator evaluates.
#pragma once

#include <cute/arch/mma_sm90_gmma.hpp>
#include <type_traits>
#include <utility>

#include "wlib/sm90/platform.h"
#if !WLIB_ON_DEVICE
#include <array>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#endif

namespace wlib::sm90 {

// D[64, N] += A[64, K] * B[N, K]^T, FP32 accumulators. Rs: A in registers, B K-major; Ss: A in
// shared memory, both K-major. SsMn: likewise, but both MN-major: a row of shared memory is one of
// k. SsHalf: FP16 accumulators, two neighbouring columns of a row in one register.
template <int kN>
struct WgmmaE4M3;
#define WLIB_WGMMA_E4M3(n)                                                \
  template <>                                                             \
  struct WgmmaE4M3<n> {                                                   \
    using Rs = cute::SM90::GMMA::MMA_64x##n##x32_F32E4M3E4M3_RS_TN<>;     \
    using Ss = cute::SM90::GMMA::MMA_64x##n##x32_F32E4M3E4M3_SS_TN<>;     \
    using SsHalf = cute::SM90::GMMA::MMA_64x##n##x32_F16E4M3E4M3_SS_TN<>; \
  };
WLIB_WGMMA_E4M3(8)
WLIB_WGMMA_E4M3(16)
WLIB_WGMMA_E4M3(32)
WLIB_WGMMA_E4M3(64)
WLIB_WGMMA_E4M3(128)
WLIB_WGMMA_E4M3(256)
#undef WLIB_WGMMA_E4M3

// FP8 operands of either type, N = 64.
enum class Fp8 { kE4M3, kE5M2 };
template <Fp8 kA, Fp8 kB>
struct WgmmaFp8;
#define WLIB_WGMMA_FP8(a, b)                                       \
  template <>                                                      \
  struct WgmmaFp8<Fp8::k##a, Fp8::k##b> {                          \
    using Rs = cute::SM90::GMMA::MMA_64x64x32_F32##a##b##_RS_TN<>; \
  };
WLIB_WGMMA_FP8(E4M3, E4M3)
WLIB_WGMMA_FP8(E4M3, E5M2)
WLIB_WGMMA_FP8(E5M2, E4M3)
WLIB_WGMMA_FP8(E5M2, E5M2)
#undef WLIB_WGMMA_FP8

constexpr auto kKMajor = cute::SM90::GMMA::Major::K, kMnMajor = cute::SM90::GMMA::Major::MN;
template <int kN>
struct WgmmaBF16;
template <int kN>
struct WgmmaF16;
#define WLIB_WGMMA_16(n)                                                           \
  template <>                                                                      \
  struct WgmmaBF16<n> {                                                            \
    using Rs = cute::SM90::GMMA::MMA_64x##n##x16_F32BF16BF16_RS<kKMajor, kKMajor>; \
    using Ss = cute::SM90::GMMA::MMA_64x##n##x16_F32BF16BF16_SS<kKMajor, kKMajor>; \
  };                                                                               \
  template <>                                                                      \
  struct WgmmaF16<n> {                                                             \
    using Rs = cute::SM90::GMMA::MMA_64x##n##x16_F32F16F16_RS<kKMajor, kKMajor>;   \
    using Ss = cute::SM90::GMMA::MMA_64x##n##x16_F32F16F16_SS<kKMajor, kKMajor>;   \
  };
WLIB_WGMMA_16(32)
WLIB_WGMMA_16(64)
#undef WLIB_WGMMA_16
template <>
struct WgmmaBF16<256> {
  using Ss = cute::SM90::GMMA::MMA_64x256x16_F32BF16BF16_SS<kKMajor, kKMajor>;
  using SsMn = cute::SM90::GMMA::MMA_64x256x16_F32BF16BF16_SS<kMnMajor, kMnMajor>;
};
template <>
struct WgmmaF16<256> {
  using Ss = cute::SM90::GMMA::MMA_64x256x16_F32F16F16_SS<kKMajor, kKMajor>;
  using SsMn = cute::SM90::GMMA::MMA_64x256x16_F32F16F16_SS<kMnMajor, kMnMajor>;
};

// Registers of a thread for D: float, or uint32_t with two FP16 numbers.
template <class Op>
constexpr int kAccumulators = int(std::extent_v<typename Op::CRegisters>);
template <class Op>
using Accumulator = std::remove_extent_t<typename Op::CRegisters>;

// Where number v of a thread's accumulators lies in the 64 x N tile.
WLIB_HOST_DEVICE constexpr int accumulator_row(int thread, int v) {
  return thread / 32 * 16 + thread % 32 / 4 + v / 2 % 2 * 8;
}
WLIB_HOST_DEVICE constexpr int accumulator_column(int thread, int v) {
  return v / 4 * 8 + thread % 4 * 2 + v % 2;
}

// Descriptor of a K-major tile of 128-byte rows with 128-byte swizzle at a 1024-byte boundary.
WLIB_DEVICE uint64_t swizzled_tile_descriptor(const void* smem) {
  constexpr uint64_t kSwizzle128 = 1, kEightRows = 1024 >> 4;
  return uint64_t((shared_address(smem) & 0x3ffff) >> 4) | uint64_t(1) << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}
// One k step of 32 bytes further inside the rows (addresses count 16-byte units).
constexpr uint64_t kDescriptorKStep = 2;
// Descriptor of an MN-major tile of 16-bit elements: boxes of 64 columns, `box_bytes` apart at
// 1024-byte boundaries, with rows of k as above.
WLIB_DEVICE uint64_t mn_major_tile_descriptor(const void* smem, uint32_t box_bytes) {
  constexpr uint64_t kColumnUnits = uint64_t(0x3fff) << 16;
  return (swizzled_tile_descriptor(smem) & ~kColumnUnits) | uint64_t(box_bytes >> 4) << 16;
}
// One k step of 16 rows further.
constexpr uint64_t kMnDescriptorKStep = 16 * 128 >> 4;

#if WLIB_ON_DEVICE

namespace detail {
using cute::SM90::GMMA::ScaleOut;
template <class Op, size_t... kD>
WLIB_DEVICE void call(Accumulator<Op>* d, const uint32_t* a, uint64_t b, ScaleOut s,
                      std::index_sequence<kD...>) {
  Op::fma(a[0], a[1], a[2], a[3], b, d[kD]..., s);
}
template <class Op, size_t... kD>
WLIB_DEVICE void call(Accumulator<Op>* d, uint64_t a, uint64_t b, ScaleOut s,
                      std::index_sequence<kD...>) {
  Op::fma(a, b, d[kD]..., s);
}
// An access that the compiler cannot see through.
WLIB_DEVICE void touch(float& x) { asm volatile("" : "+f"(x)::"memory"); }
WLIB_DEVICE void touch(uint32_t& x) { asm volatile("" : "+r"(x)::"memory"); }
}  // namespace detail

// Before the first wgmma and after any access to its registers other than by a wgmma.
WLIB_DEVICE void wgmma_fence() { cute::warpgroup_arrive(); }
WLIB_DEVICE void wgmma_commit() { cute::warpgroup_commit_batch(); }

// A fragments must outlive the matching wait: declare them in the scope of the wait.
template <class Op>
WLIB_DEVICE void wgmma(Accumulator<Op> (&d)[kAccumulators<Op>], const uint32_t (&a)[4], uint64_t b,
                       bool accumulate) {
  detail::call<Op>(d, a, b, detail::ScaleOut(accumulate),
                   std::make_index_sequence<kAccumulators<Op>>{});
}
template <class Op>
WLIB_DEVICE void wgmma(Accumulator<Op> (&d)[kAccumulators<Op>], uint64_t a, uint64_t b,
                       bool accumulate) {
  detail::call<Op>(d, a, b, detail::ScaleOut(accumulate),
                   std::make_index_sequence<kAccumulators<Op>>{});
}
// Until at most kPending groups are in flight. `d` is named so that the compiler cannot move its
// uses up.
template <int kPending, class T, int kCount>
WLIB_DEVICE void wgmma_wait(T (&d)[kCount]) {
  cute::warpgroup_wait<kPending>();
  WLIB_UNROLL
  for (int i = 0; i < kCount; ++i) detail::touch(d[i]);
}

// Values that become fragments are not to be turned into them before this point: ptxas serialises
// wgmmas if registers that a later one reads are written while others are in flight.
template <class T, int kCount>
WLIB_DEVICE void wgmma_hold(T (&values)[kCount]) {
  WLIB_UNROLL
  for (int i = 0; i < kCount; ++i) detail::touch(values[i]);
}

#else

namespace detail {

template <class Layout, int kPerThread>
std::array<uint16_t, 128 * kPerThread> coordinates() {
  std::array<uint16_t, 128 * kPerThread> table{};
  for (int t = 0; t < 128; ++t) {
    for (int v = 0; v < kPerThread; ++v) table[t * kPerThread + v] = uint16_t(Layout{}(t, v));
  }
  return table;
}

template <class T>
constexpr sim::dev::Element kElement =
    std::is_same_v<T, cute::float_e4m3_t>   ? sim::dev::Element::kE4M3
    : std::is_same_v<T, cute::float_e5m2_t> ? sim::dev::Element::kE5M2
    : std::is_same_v<T, cute::half_t>       ? sim::dev::Element::kF16
                                            : sim::dev::Element::kBF16;

// Filled before main(): a kernel must not write static memory.
template <class Op>
struct Shape {
  using Traits = cute::MMA_Traits<Op>;
  static constexpr int kN = cute::size<1>(typename Traits::Shape_MNK{});
  static constexpr int kK = cute::size<2>(typename Traits::Shape_MNK{});
  static constexpr bool kRegisterA = std::is_same_v<typename Op::ARegisters, uint32_t[4]>;
  static constexpr bool kMnMajor =
      std::is_same_v<typename Traits::FrgTypeB, cute::SM90::GMMA::smem_desc<sm90::kMnMajor>>;
  static constexpr bool kHalf = std::is_same_v<typename Traits::ValTypeD, cute::half_t>;
  static inline const auto a = coordinates<typename Traits::ALayout, kRegisterA ? kK / 2 : 1>();
  static inline const auto d = coordinates<typename Traits::CLayout, kN / 2>();
  static inline const sim::dev::WgmmaShape value = {kN,
                                                    kK,
                                                    kAccumulators<Op>,
                                                    kRegisterA,
                                                    kMnMajor,
                                                    kElement<typename Traits::ValTypeA>,
                                                    kElement<typename Traits::ValTypeB>,
                                                    kHalf,
                                                    a.data(),
                                                    d.data()};
};

}  // namespace detail

inline void wgmma_fence() { sim::dev::wgmma_fence(); }
inline void wgmma_commit() { sim::dev::wgmma_commit(); }
template <class Op>
void wgmma(Accumulator<Op> (&d)[kAccumulators<Op>], const uint32_t (&a)[4], uint64_t b,
           bool accumulate) {
  sim::dev::wgmma_issue(detail::Shape<Op>::value, reinterpret_cast<float*>(d), a, 0, b, accumulate);
}
template <class Op>
void wgmma(Accumulator<Op> (&d)[kAccumulators<Op>], uint64_t a, uint64_t b, bool accumulate) {
  sim::dev::wgmma_issue(detail::Shape<Op>::value, reinterpret_cast<float*>(d), nullptr, a, b,
                        accumulate);
}
template <int kPending, class T, int kCount>
void wgmma_wait(T (&)[kCount]) {
  sim::dev::wgmma_wait(kPending);
}
template <class T, int kCount>
void wgmma_hold(T (&)[kCount]) {}

#endif

}  // namespace wlib::sm90

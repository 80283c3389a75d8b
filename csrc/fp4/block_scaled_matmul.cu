// The GEMM of mode block_scaled on Blackwell: CUTLASS's collectives for block-scaled MMAs, compiled
// once per architecture (WLIB_ARCH), format and type of the output (WLIB_INSTANCE).
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "fp4/block_scaled.h"

namespace wlib::fp4 {
namespace {

namespace collective = cutlass::gemm::collective;
using cute::_0, cute::_1, cute::_2, cute::_128, cute::_256, cute::Shape, cute::Stride;

template <int kArch>
struct Target;
template <>
struct Target<100> {  // tcgen05.mma by pairs of SMs
  using Arch = cutlass::arch::Sm100;
  using Tile = Shape<_256, _256, _256>;
  using Cluster = Shape<_2, _1, _1>;
  using MxSchedule = cutlass::gemm::KernelTmaWarpSpecialized2SmMxf4Sm100;
  using NvSchedule = cutlass::gemm::KernelTmaWarpSpecialized2SmNvf4Sm100;
};
template <>
struct Target<120> {  // mma.sync
  using Arch = cutlass::arch::Sm120;
  using Tile = Shape<_128, _128, _128>;
  using Cluster = Shape<_1, _1, _1>;
  using MxSchedule = cutlass::gemm::KernelTmaWarpSpecializedMxf4Sm120;
  using NvSchedule = cutlass::gemm::KernelTmaWarpSpecializedNvf4Sm120;
};

template <FloatType kType>
struct Output;
template <>
struct Output<FloatType::kFloat32> {
  using Type = float;
};
template <>
struct Output<FloatType::kBFloat16> {
  using Type = cutlass::bfloat16_t;
};
template <>
struct Output<FloatType::kFloat16> {
  using Type = cutlass::half_t;
};

template <bool kNv>
struct Format;
template <>
struct Format<false> {
  using Element = cutlass::mx_float4_t<cutlass::float_e2m1_t>;
  template <class T>
  using Schedule = typename T::MxSchedule;
};
template <>
struct Format<true> {
  using Element = cutlass::nv_float4_t<cutlass::float_e2m1_t>;
  template <class T>
  using Schedule = typename T::NvSchedule;
};

// D = (alpha * a_global * b_global) * accumulator, rounded once. Global scales stay on the device.
template <class Out>
using Epilogue = cutlass::epilogue::fusion::Sm90EVT<
    cutlass::epilogue::fusion::Sm90Compute<cutlass::multiplies, Out, float,
                                           cutlass::FloatRoundStyle::round_to_nearest>,
    cutlass::epilogue::fusion::Sm90ScalarBroadcast<float, Stride<_0, _0, _0>, 3>,
    cutlass::epilogue::fusion::Sm90AccFetch>;

template <class Target, class Format, class Out>
struct Gemm {
  using Operator = cutlass::arch::OpClassBlockScaledTensorOp;
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;
  static constexpr int kAlignment = kBlockScaledBytes * 2;  // codes
  static constexpr int kOutAlignment = kBlockScaledBytes / sizeof(Out);

  using Store = typename cutlass::epilogue::collective::CollectiveBuilder<
      typename Target::Arch, Operator, typename Target::Tile, typename Target::Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor, kOutAlignment,
      Out, RowMajor, kOutAlignment, cutlass::epilogue::collective::EpilogueScheduleAuto,
      Epilogue<Out>>::CollectiveOp;
  using Main = typename collective::CollectiveBuilder<
      typename Target::Arch, Operator, typename Format::Element, RowMajor, kAlignment,
      typename Format::Element, ColumnMajor, kAlignment, float, typename Target::Tile,
      typename Target::Cluster,
      collective::StageCountAutoCarveout<int(sizeof(typename Store::SharedStorage))>,
      typename Format::template Schedule<Target>>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Main, Store>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
};

template <class G>
typename G::Device::Arguments arguments(const MatmulParams& p, int device) {
  using Main = typename G::Main;
  using Scales = typename Main::Sm1xxBlkScaledConfig;
  const cute::Shape<int, int, int, int> shape{int(p.a.rows), int(p.b.rows), int(p.k), 1};
  const auto codes = [](const Operand& o) {
    return reinterpret_cast<const typename Main::ArrayElementA*>(o.packed.codes);
  };
  const auto scales = [](const Operand& o) {
    return reinterpret_cast<const typename Main::ElementSF*>(o.packed.scales);
  };
  typename G::Device::Arguments args{};
  args.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  args.problem_shape = shape;
  args.mainloop = {codes(p.a),  {p.k, _1{}, 0},
                   codes(p.b),  {p.k, _1{}, 0},
                   scales(p.a), Scales::tile_atom_to_shape_SFA(shape),
                   scales(p.b), Scales::tile_atom_to_shape_SFB(shape)};
  args.epilogue.thread = {
      {{p.alpha, 1, 1}, {nullptr, p.a.packed.global_scale, p.b.packed.global_scale}}, {}, {}};
  args.epilogue.ptr_D = static_cast<decltype(args.epilogue.ptr_D)>(p.y);
  args.epilogue.dD = {p.b.rows, _1{}, 0};
  args.hw_info.device_id = device;
  args.hw_info.sm_count = cutlass::KernelHardwareInfo::query_device_multiprocessor_count(device);
  return args;
}

template <class G>
const char* launch(const MatmulParams& p, int device, cudaStream_t stream,
                   const Allocate& allocate) {
  const typename G::Device::Arguments args = arguments<G>(p, device);
  cutlass::Status status = G::Device::can_implement(args);
  if (status == cutlass::Status::kSuccess) {
    const size_t bytes = G::Device::get_workspace_size(args);
    typename G::Device gemm;
    status = gemm.run(args, bytes ? allocate(bytes) : nullptr, stream);
  }
  return status == cutlass::Status::kSuccess ? nullptr : cutlassGetStatusString(status);
}

// WLIB_INSTANCE 0 to 2: mxfp4, 3 to 5: nvfp4, to the first three of FloatType.
constexpr bool kNvInstance = WLIB_INSTANCE / 3;
constexpr FloatType kOutInstance = FloatType(WLIB_INSTANCE % 3);

}  // namespace

template <>
const char* launch_block_scaled<WLIB_ARCH, kNvInstance, kOutInstance>(const MatmulParams& p,
                                                                      int device, void* stream,
                                                                      const Allocate& allocate) {
  using G = Gemm<Target<WLIB_ARCH>, Format<kNvInstance>, typename Output<kOutInstance>::Type>;
  return launch<G>(p, device, static_cast<cudaStream_t>(stream), allocate);
}

}  // namespace wlib::fp4

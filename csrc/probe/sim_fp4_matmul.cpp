// Instrumented: the loads and stores of the kernels included here call the checker
// (tests/sim/hooks.cpp).
#include "probe/sim_fp4_matmul.h"

#include <stdexcept>
#include <vector>

#include "fp4/sm90_exact.h"
#include "fp4/sm90_matmul.h"
#include "fp4/sm90_scales.h"

namespace wlib::fp4 {
namespace {

sim::Buffer input(const void* data, int64_t bytes, const char* name) {
  return {const_cast<void*>(data), data ? size_t(bytes) : 0, name, false};
}

std::vector<sim::Buffer> operands(const MatmulParams& p) {
  std::vector<sim::Buffer> buffers;
  for (const Operand* o : {&p.a, &p.b}) {
    const int64_t values = o->rows * p.k;
    const Packed& q = o->packed;
    buffers.push_back(input(q.codes, values / 2, "codes"));
    buffers.push_back(input(q.scales, values / (q.global_scale ? kNvBlock : kMxBlock), "scales"));
    buffers.push_back(input(q.global_scale, 4, "global scale"));
    buffers.push_back(input(o->carrier, values, "carrier"));
    buffers.push_back(input(o->row_scale, o->rows * 4, "row scales"));
  }
  return buffers;
}

sim::Buffer output(const MatmulParams& p) {
  return {p.y, size_t(p.a.rows * p.b.rows) * bytes_of(p.out_type), "y", true};
}

// Runs launches one after the other and keeps what the first of them found.
struct Launches {
  const MatmulParams& op;
  int ctas;
  sim::Options options;
  std::vector<uint8_t> memory;
  Workspace w;
  sim::Report report;

  Launches(const MatmulParams& p, int most_ctas, const sim::Options& o)
      : op(p), ctas(most_ctas), options(o), memory(Workspace::of(p).bytes + 128, 0xff) {
    const auto first = uintptr_t(memory.data());
    w = Workspace::of(p, memory.data() + (128 - first % 128) % 128);
  }
  sim::Buffer workspace(bool writable, bool initialised) {
    return {memory.data(), memory.size(), "workspace", writable, initialised};
  }
  template <class Params>
  void run(const sim::LaunchConfig& config, std::vector<sim::Buffer> more, void (*kernel)(Params),
           const Params& params) {
    if (!report.ok()) return;
    std::vector<sim::Buffer> buffers = operands(op);
    buffers.insert(buffers.end(), more.begin(), more.end());
    const uint64_t before = report.wgmmas;
    report = sim::launch(config, options, buffers, kernel, params);
    report.wgmmas += before;
  }
  template <class C>
  void multiply(When when) {
    MatmulKernelParams p;
    make_matmul_params<C>(op, w, when, &p);
    const int clusters = (ctas + C::kCtas - 1) / C::kCtas;
    sim::Buffer y = output(op);
    y.initialised = when != When::kAlways;  // as the other launch may have written it
    run({{clusters * C::kCtas, 1, 1}, C::kThreads, sizeof(MatmulSmem<C>), C::kCtas},
        {workspace(false, true), y}, matmul_kernel<C>, p);
  }
  template <class Source>
  void arrange(When when) {
    const int count = int((padded_rows(op.a.rows) + padded_rows(op.b.rows)) / kArrangedRows);
    run({{count, 1, 1}, kArrangeThreads, sizeof(ArrangeSmem)},
        {workspace(true, when != When::kAlways)}, arrange_scales_kernel<Source>,
        make_arrange_params(op, w, when));
  }
  template <class Folded, class BF16>
  void multiply_codes() {
    const bool fold = op.mode == MatmulMode::kFold8;
    if (fold) {
      arrange<FoldedCodes>(When::kAlways);
      multiply<Folded>(When::kIfNarrow);
    }
    arrange<BF16Codes>(fold ? When::kIfWide : When::kAlways);
    multiply<BF16>(fold ? When::kIfWide : When::kAlways);
  }
  template <int kColumns, int kStages, int kPackedStages>
  void multiply_any() {
    using sm90::Fp8;
    if (op.a.carrier_type == Carrier::kNone)
      return multiply_codes<MatmulConfig<FoldedCodes, kColumns, kPackedStages>,
                            MatmulConfig<BF16Codes, kColumns, kPackedStages>>();
    const auto by_types = [&]<Fp8 kA, Fp8 kB>() {
      multiply<MatmulConfig<Carriers<kA, kB>, kColumns, kStages>>(When::kAlways);
    };
#ifndef WLIB_SIM_ONLY_SMALL  // mutants need no more than one pair of types
    if (op.a.carrier_type == op.b.carrier_type)
      return op.a.carrier_type == Carrier::kE5M2
                 ? by_types.template operator()<Fp8::kE5M2, Fp8::kE5M2>()
                 : by_types.template operator()<Fp8::kE4M3, Fp8::kE4M3>();
    if (op.a.carrier_type == Carrier::kE5M2)
      return by_types.template operator()<Fp8::kE5M2, Fp8::kE4M3>();
#endif
    by_types.template operator()<Fp8::kE4M3, Fp8::kE5M2>();
  }
};

}  // namespace

sim::Report simulate_matmul(const MatmulParams& p, int instance, int ctas,
                            const sim::Options& options) {
  Launches launches(p, ctas, options);
  if (p.mode == MatmulMode::kExact32) {
    launches.run({{ctas, 1, 1}, kExactThreads, 0}, {output(p)}, exact_kernel, make_exact_params(p));
    return launches.report;
  }
#ifndef WLIB_SIM_ONLY_SMALL
  if (instance == 0) {
    launches.multiply_any<256, 4, 3>();
    return launches.report;
  }
#endif
  if (instance != 1) throw std::invalid_argument("no such instance of the matmul kernel");
  launches.multiply_any<128, 2, 2>();
  return launches.report;
}

}  // namespace wlib::fp4

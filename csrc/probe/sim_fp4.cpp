// Instrumented: the loads and stores of the kernels included here call the checker.
#include "probe/sim_fp4.h"

#include <vector>

#include "fp4/sm90_hadamard.h"
#include "fp4/sm90_passes.h"

namespace wlib::fp4 {
namespace {

sim::Buffer input(const void* data, int64_t bytes, const char* name) {
  return {const_cast<void*>(data), size_t(data ? bytes : 0), name, false};
}
// Of several passes: the later ones read what the earlier ones have written.
sim::Buffer output(void* data, int64_t bytes, const char* name, bool written = false) {
  return {data, size_t(data ? bytes : 0), name, true, written};
}

void add_source(const Source& s, std::vector<sim::Buffer>& buffers) {
  const int64_t elements = (s.rows - 1) * s.x_stride + s.columns;
  const int block = s.packed.global_scale ? kNvBlock : kMxBlock;
  buffers.push_back(input(s.x, elements * int64_t(bytes_of(s.x_type)), "x"));
  buffers.push_back(input(s.packed.codes, s.rows * s.columns / 2, "packed codes"));
  buffers.push_back(input(s.packed.scales, s.rows * s.columns / block, "packed scales"));
  buffers.push_back(input(s.packed.global_scale, 4, "old global scale"));
}

struct Scratch {
  std::vector<uint32_t> tile_largest, row_largest;
  std::vector<uint8_t> codes, scales;
};

// `passes` that have run.
void add_side(const QuantizeParams& p, const Scratch& scratch, int passes,
              std::vector<sim::Buffer>& buffers) {
  const int64_t values = p.rows() * p.columns();
  const bool mx = is_mx(p.rule);  // its first pass writes codes and scales
  buffers.push_back(input(p.signs, p.hadamard, "signs"));
  buffers.push_back(input(p.seed, p.seed_has_step ? 16 : 8, "seed"));
  buffers.push_back(
      output(p.global_scale, 4, "global scale", p.global_scale_is_given || passes > 1));
  buffers.push_back(
      output(p.tile_largest, int64_t(scratch.tile_largest.size()) * 4, "tile largest", passes > 0));
  buffers.push_back(
      output(p.row_largest, int64_t(scratch.row_largest.size()) * 4, "row largest", passes > 1));
  buffers.push_back(output(p.out.codes, values / 2, "codes", mx && passes > 0));
  buffers.push_back(output(p.out.scales, p.scales(), "scales", mx && passes > 0));
  buffers.push_back(output(p.out.carrier, values, "carrier"));
  buffers.push_back(output(p.out.row_scale, p.rows() * 4, "row scale", passes > 1));
  buffers.push_back(output(p.out.mask, values / 8, "mask", mx && passes > 0));
}

}  // namespace

sim::Report simulate_quantize(std::span<const QuantizeParams> given, const sim::Options& options) {
  std::vector<QuantizeParams> sides(given.begin(), given.end());
  Scratch scratch[2];
  for (size_t i = 0; i < sides.size(); ++i) {
    QuantizeParams& p = sides[i];
    Scratch& own = scratch[i];
    if (!p.out.codes) {
      own.codes.resize(p.rows() * p.columns() / 2);
      own.scales.resize(p.scales());
      p.out.codes = own.codes.data();
      p.out.scales = own.scales.data();
    }
    if (!p.wants_largest()) continue;
    const int64_t along = quantize_tiles(p.columns());
    own.tile_largest.resize(along * (is_mx(p.rule) ? p.rows() : quantize_tiles(p.rows())));
    p.tile_largest = own.tile_largest.data();
    if (is_mx(p.rule)) own.row_largest.resize(p.rows());
    p.row_largest = own.row_largest.data();
  }
  const QuantizeLaunch l = make_launch(sides);
  sim::Report report;
  int passes = 0;
  const auto pass = [&](auto kernel, int64_t x, int y, size_t bytes) {
    std::vector<sim::Buffer> buffers;
    add_source(l.side[0].source, buffers);
    for (int i = 0; i < l.sides; ++i) add_side(l.side[i], scratch[i], passes, buffers);
    ++passes;
    report =
        sim::launch({{int(x), y, 1}, kTileThreads, bytes, 1, true}, options, buffers, kernel, l);
    return report.ok();
  };
  if (is_mx(l.side[0].rule))
    for_passes<true>(l, pass);
  else
    for_passes<false>(l, pass);
  return report;
}

sim::Report simulate_hadamard(const HadamardParams& p, const sim::Options& options) {
  const int64_t bytes = int64_t(bytes_of(p.type));
  const std::vector<sim::Buffer> buffers = {
      input(p.x, ((p.rows - 1) * p.x_stride + p.columns) * bytes, "x"),
      input(p.signs, p.size, "signs"), output(p.y, p.rows * p.columns * bytes, "y")};
  const HadamardLaunch l(p);
  return sim::launch({{int(l.ctas()), 1, 1}, kTileThreads, sizeof(QuantizeSmem), 1, true}, options,
                     buffers, hadamard_kernel, l);
}

sim::Report simulate_signs(const SignsParams& p, const sim::Options& options) {
  const std::vector<sim::Buffer> buffers = {input(p.seed, p.seed_has_step ? 16 : 8, "seed"),
                                            output(p.signs, p.size, "signs")};
  return sim::launch({{1, 1, 1}, kSignThreads, 0, 1, true}, options, buffers, signs_kernel, p);
}

}  // namespace wlib::fp4

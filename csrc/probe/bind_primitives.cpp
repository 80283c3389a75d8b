// The simulator's own probes: values of primitives, planted bugs.
#include <pybind11/stl.h>

#include <stdexcept>

#include "probe/bind.h"
#include "probe/planted.h"
#include "probe/sim_values.h"
#include "wlib/sm90/half2.h"
#include "wlib/sm90/tensor_map.h"

namespace wlib::probe {
namespace {

std::vector<PlantedCase> all_planted() {
  std::vector<PlantedCase> all;
  for (const auto part : {planted_memory(), planted_sync(), planted_cluster(), planted_copy(),
                          planted_mma(), planted_wgmma(), planted_dependency()}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

std::vector<std::pair<std::string, std::string>> planted_names() {
  std::vector<std::pair<std::string, std::string>> rows;
  for (const PlantedCase& c : all_planted()) rows.emplace_back(c.name, c.check);
  return rows;
}

sim::Report run_planted(const std::string& name, bool bug, const sim::Options& options) {
  for (const PlantedCase& c : all_planted()) {
    if (c.name != name) continue;
    std::vector<uint8_t> in(64 * 128 + 16);
    std::vector<float> out(256 + 4);
    const auto aligned = [](auto* p) {
      return p + (-reinterpret_cast<uintptr_t>(p) % 16) / sizeof(*p);
    };
    PlantedParams p{aligned(in.data()), aligned(out.data()), {}, bug};
    sm90::make_tensor_map(&p.map, {p.input, 64, 128, 128, 8, 128, 1});
    return sim::launch({{c.cluster, 1, 1}, c.threads, sizeof(PlantedSmem), c.cluster, c.dependent},
                       options,
                       {{const_cast<uint8_t*>(p.input), 64 * 128, "input", false},
                        {p.output, 1024, "output", true}},
                       c.kernel, p);
  }
  throw std::invalid_argument("no planted bug of this name");
}

sim::Report wgmma(const py::array& a, const py::array& b, Array<float>& d, bool register_a,
                  const sim::Options& o, bool half, bool mn_major) {
  const auto narrow = half ? MatrixType::kE4M3Half : MatrixType::kE4M3;
  const auto type = a.itemsize() == 1 ? narrow
                    : a.dtype().kind() == 'f'
                        ? (mn_major ? MatrixType::kF16Mn : MatrixType::kF16)
                        : (mn_major ? MatrixType::kBF16Mn : MatrixType::kBF16);
  return run_wgmma(type, int(b.shape(0)), register_a, static_cast<const uint8_t*>(a.data()),
                   static_cast<const uint8_t*>(b.data()), d.mutable_data(), o);
}

sim::Report mma(const py::array& a, const py::array& b, Array<float>& d, const sim::Options& o) {
  return run_mma(a.dtype().kind() == 'f' ? MatrixType::kF16 : MatrixType::kBF16,
                 static_cast<const uint16_t*>(a.data()), static_cast<const uint16_t*>(b.data()),
                 d.mutable_data(), o);
}

sim::Report load_matrices(const Array<uint16_t>& x, Array<uint32_t>& out, int first,
                          bool transposed, const sim::Options& o) {
  return run_load_matrices(x.data(), out.mutable_data(), first, transposed, o);
}

sim::Report tensor_load(const py::array& x, int column, int row, bool swizzle, Array<uint8_t>& out,
                        const sim::Options& o) {
  return run_tensor_load(
      {static_cast<const uint8_t*>(x.data()), int(x.shape(0)), int(x.shape(1)), int(x.strides(0)),
       int(x.itemsize()), swizzle, int(out.shape(1)), column, row},
      out.mutable_data(), o);
}

sim::Report warp(Array<float>& out, const sim::Options& o) {
  return run_warp(out.mutable_data(), o);
}

sim::Report cluster(const Array<uint8_t>& x, Array<float>& out, Array<uint8_t>& gathered,
                    const sim::Options& o) {
  return run_cluster(int(out.shape(0)), x.data(), out.mutable_data(), gathered.mutable_data(), o);
}

sim::Report grid(int ctas, Array<int32_t>& out, int shift, const sim::Options& o) {
  return run_grid(ctas, int(out.shape(1)), shift, out.mutable_data(), o);
}

}  // namespace

void bind_primitives(py::module_& m) {
  m.def("planted", &planted_names);
  m.def("run_planted", &run_planted, py::arg("name"), py::arg("bug"), py::arg("options"));
  m.def("wgmma", &wgmma, py::arg("a"), py::arg("b"), py::arg("d").noconvert(),
        py::arg("register_a"), py::arg("options"), py::arg("half") = false,
        py::arg("mn_major") = false);
  m.def("mma", &mma, py::arg("a"), py::arg("b"), py::arg("d").noconvert(), py::arg("options"));
  m.def("load_matrices", &load_matrices, py::arg("x").noconvert(), py::arg("out").noconvert(),
        py::arg("first"), py::arg("transposed"), py::arg("options"));
  m.def("half2_add", py::vectorize(&sm90::half2_add));
  m.def("half2_sub", py::vectorize(&sm90::half2_sub));
  m.def("half2_mul", py::vectorize(&sm90::half2_mul));
  m.def("half2_max", py::vectorize(&sm90::half2_max));
  m.def("half2_fma", py::vectorize(&sm90::half2_fma));
  m.def("half2_exp2", py::vectorize(&sm90::half2_exp2));
  m.def("half2_to_e4m3x2", py::vectorize(&sm90::half2_to_e4m3x2));
  m.def("pack_half2", py::vectorize(&sm90::pack_half2));
  m.def("tensor_load", &tensor_load, py::arg("x"), py::arg("column"), py::arg("row"),
        py::arg("swizzle"), py::arg("out").noconvert(), py::arg("options"));
  m.def("phase_wait", &run_phase_wait, py::arg("phases"), py::arg("parity"), py::arg("options"));
  m.def("warp", &warp, py::arg("out").noconvert(), py::arg("options"));
  m.def("cluster", &cluster, py::arg("x").noconvert(), py::arg("out").noconvert(),
        py::arg("gathered").noconvert(), py::arg("options"));
  m.def("grid", &grid, py::arg("ctas"), py::arg("out").noconvert(), py::arg("shift"),
        py::arg("options"));
}

}  // namespace wlib::probe

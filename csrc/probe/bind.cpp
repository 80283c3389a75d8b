#include "probe/bind.h"

PYBIND11_MODULE(wlib_probe, m) {
  m.doc() = "Test-only: number formats, layouts, the simulator and kernels that run in it.";
  wlib::probe::bind_numerics(m);
  wlib::probe::bind_layout(m);
  wlib::probe::bind_simulator(m);
  wlib::probe::bind_primitives(m);
  wlib::probe::bind_int4fp8(m);
  wlib::probe::bind_fp4(m);
  wlib::probe::bind_block_scaled(m);
  wlib::probe::bind_fp4_quantize(m);
  wlib::probe::bind_rebuild(m);
  wlib::probe::bind_kv(m);
  wlib::probe::bind_sparse(m);
  wlib::probe::bind_attention(m);
  wlib::probe::bind_atoms(m);
  wlib::probe::bind_linear(m);
}

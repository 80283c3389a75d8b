// wlib_probe hands parts of wlib to the tests, as functions on NumPy arrays, family by family.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace wlib::probe {

namespace py = pybind11;

// Arrays are taken as they are: a wrong dtype or layout is an error, never a silent copy.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

void bind_numerics(py::module_& m);
void bind_layout(py::module_& m);
void bind_simulator(py::module_& m);
void bind_primitives(py::module_& m);
void bind_int4fp8(py::module_& m);
void bind_fp4(py::module_& m);
void bind_block_scaled(py::module_& m);
void bind_fp4_quantize(py::module_& m);
void bind_rebuild(py::module_& m);
void bind_kv(py::module_& m);
void bind_sparse(py::module_& m);
void bind_attention(py::module_& m);
void bind_atoms(py::module_& m);
void bind_linear(py::module_& m);

inline void* pointer(const py::array& a) { return const_cast<void*>(a.data()); }

}  // namespace wlib::probe

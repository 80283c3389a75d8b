// Options and reports of the simulator as Python classes.
#include <pybind11/stl.h>

#include <stdexcept>

#include "probe/bind.h"
#include "sim/api.h"
#include "sim/knowledge.h"

namespace wlib::probe {
namespace {

sim::Schedule schedule_named(const std::string& name) {
  if (name == "round_robin") return sim::Schedule::kRoundRobin;
  if (name == "random") return sim::Schedule::kRandom;
  throw std::invalid_argument("schedule: round_robin or random");
}

sim::EngineTiming timing_named(const std::string& name) {
  if (name == "eager") return sim::EngineTiming::kEager;
  if (name == "random") return sim::EngineTiming::kRandom;
  if (name == "lazy") return sim::EngineTiming::kLazy;
  throw std::invalid_argument("timing: eager, random or lazy");
}

sim::Options make_options(uint64_t seed, const std::string& schedule, const std::string& timing,
                          bool truncate, uint32_t preempt_every) {
  return {seed, schedule_named(schedule), timing_named(timing), truncate, preempt_every};
}

}  // namespace

void bind_simulator(py::module_& m) {
  py::class_<sim::Options>(m, "Options")
      .def(py::init(&make_options), py::kw_only(), py::arg("seed") = 0,
           py::arg("schedule") = "random", py::arg("timing") = "random",
           py::arg("truncate") = false, py::arg("preempt_every") = 0);
  py::class_<sim::Finding>(m, "Finding")
      .def_readonly("check", &sim::Finding::check)
      .def_readonly("message", &sim::Finding::message)
      .def_readonly("source", &sim::Finding::source)
      .def("__repr__", [](const sim::Finding& f) {
        return f.check + ": " + f.message + " [" + f.source + "]";
      });
  py::class_<sim::Report>(m, "Report")
      .def_readonly("findings", &sim::Report::findings)
      .def_readonly("switches", &sim::Report::switches)
      .def_readonly("accesses", &sim::Report::accesses)
      .def_readonly("copies", &sim::Report::copies)
      .def_readonly("wgmmas", &sim::Report::wgmmas);
  py::class_<sim::Knowledge>(m, "Knowledge")
      .def(py::init<size_t>())
      .def("seen", &sim::Knowledge::seen)
      .def("fenced", &sim::Knowledge::fenced)
      .def("see", &sim::Knowledge::see)
      .def("fence", &sim::Knowledge::fence)
      .def("join", &sim::Knowledge::join)
      .def("meet", &sim::Knowledge::meet)
      .def("copy", [](const sim::Knowledge& k) { return sim::Knowledge(k); });
}

}  // namespace wlib::probe

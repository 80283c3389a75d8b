// Programmatic dependent launch: the launch before this one ends at a seeded moment.
#include "sim/machine.h"

namespace wlib::sim {

void Machine::start_launch_before() {
  launch_before_ = {};
  if (!config.dependent) return;
  schedule(draw_due(), [this] {
    launch_before_.finished = true;
    wake(launch_before_.waiters);
  });
}

void Machine::check_dependency(const Buffer& buffer, bool write, const Access& by,
                               const char* who) {
  if (!config.dependent || buffer.settled || waited(*by.known)) return;
  find("grid-dependency", agent_name(by.agent) + ": " + who + " at " + buffer.name +
                              ", which the launch before may still " +
                              (write ? "read or write" : "write") + " (no griddepcontrol.wait)");
}

void Machine::wait_for_launch_before() {
  const auto describe = [] { return std::string("in griddepcontrol.wait"); };
  if (config.dependent)
    block_until(launch_before_.waiters, describe, [this] { return launch_before_.finished; });
  self->known.see(launch_before_agent(), 1);
}

namespace dev {

void grid_dependency_wait() { WLIB_SIM_ENTER().wait_for_launch_before(); }

void launch_dependents() {
  Machine& m = WLIB_SIM_ENTER();
  if (!m.config.dependent || m.waited(m.self->known)) return;
  m.find("grid-dependency",
         m.own_name() + " lets the next launch start while the one before may still run");
}

}  // namespace dev
}  // namespace wlib::sim

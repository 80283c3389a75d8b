// Operations in which all lanes of a warp take part; setmaxnreg.
#include "sim/machine.h"

namespace wlib::sim {

WarpRendezvous& Machine::meet(std::string_view kind, const WarpRendezvous::Words& words) {
  WarpRendezvous& r = self->cta->warps[self->warp()];
  if (r.arrived == 0) {
    r.kind = kind;
    r.gathered = Knowledge(agents());
  } else if (r.kind != kind) {
    find("warp-divergence",
         "lanes of a warp meet in " + std::string(r.kind) + " and " + std::string(kind));
    abandon();
  }
  r.arrived |= 1u << self->lane();
  r.deposit[self->lane()] = words;
  if (kind == "syncwarp") release(r.gathered);
  const uint32_t generation = r.generation;
  if (r.arrived == ~0u) {
    r.arrived = 0;
    ++r.generation;
    std::copy(r.deposit, r.deposit + kWarp, r.result);
    r.released = r.gathered;
    wake(r.waiters);
  }
  const auto describe = [&r] {
    return "in " + std::string(r.kind) + ", where " +
           std::to_string(__builtin_popcount(r.arrived)) + " of 32 lanes have arrived";
  };
  block_until(r.waiters, describe, [&r, generation] { return r.generation != generation; });
  return r;
}

namespace dev {

void warp_sync() {
  Machine& m = WLIB_SIM_ENTER();
  m.self->known.join(m.meet("syncwarp", {}).released);
}

uint32_t warp_shuffle(uint32_t value, int source_lane) {
  return WLIB_SIM_ENTER().meet("shuffle", {value}).result[source_lane % kWarp][0];
}

uint32_t warp_ballot(bool predicate) {
  const WarpRendezvous& r = WLIB_SIM_ENTER().meet("ballot", {predicate});
  uint32_t votes = 0;
  for (int i = 0; i < kWarp; ++i) votes |= r.result[i][0] << i;
  return votes;
}

// PTX leaves the choice of the leader open, so any lane may win, a different one each time.
bool warp_elect() {
  Machine& m = WLIB_SIM_ENTER();
  const WarpRendezvous& r = m.meet("elect", {});
  return m.self->lane() == int((r.generation * 7 + m.options.seed) % kWarp);
}

void set_max_registers(int count, bool increase) {
  Machine& m = WLIB_SIM_ENTER();
  if (count % 8 || count < 24 || count > 256)
    m.find("registers", "setmaxnreg takes multiples of 8 in [24, 256]");
  m.meet("setmaxnreg", {});
  RegisterPool& pool = m.self->cta->registers;
  std::vector<int>& history = pool.history[m.self->warp()];
  // One lane acts for the warp, the others wait for it.
  const WarpRendezvous& r = m.self->cta->warps[m.self->warp()];
  if (m.self->lane() != int(r.generation % kWarp)) {
    m.meet("setmaxnreg", {});
    return;
  }
  const int change = (count - history.back()) * kWarp;
  if (increase ? change < 0 : change > 0) {
    m.find("registers", "setmaxnreg in the wrong direction: " + std::to_string(history.back()) +
                            " to " + std::to_string(count));
  }
  const auto describe = [&pool, change] {
    return "in setmaxnreg.inc for " + std::to_string(change) + " registers, of which the CTA has " +
           std::to_string(pool.free) + " to give";
  };
  m.block_until(pool.waiters, describe, [&pool, change] { return change <= pool.free; });
  pool.free -= change;
  history.push_back(count);
  m.wake(pool.waiters);
  m.meet("setmaxnreg", {});
}

}  // namespace dev
}  // namespace wlib::sim

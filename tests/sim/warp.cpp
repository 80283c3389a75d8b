// Operations in which all lanes of a warp take part; setmaxnreg.
#include "sim/machine.h"

namespace wlib::sim::dev {
namespace {

// All lanes meet; the rendezvous' result[] then holds every lane's deposit.
WarpRendezvous& meet(Machine& m, std::string_view kind, uint32_t value) {
  WarpRendezvous& r = m.self->cta->warps[m.self->warp()];
  if (r.arrived == 0) {
    r.kind = kind;
    r.gathered = Knowledge(m.agents());
  } else if (r.kind != kind) {
    m.find("warp-divergence",
           "lanes of a warp meet in " + std::string(r.kind) + " and " + std::string(kind));
    m.abandon();
  }
  r.arrived |= 1u << m.self->lane();
  r.deposit[m.self->lane()] = value;
  if (kind == "syncwarp") m.release(r.gathered);
  const uint32_t generation = r.generation;
  if (r.arrived == ~0u) {
    r.arrived = 0;
    ++r.generation;
    std::copy(r.deposit, r.deposit + kWarp, r.result);
    r.released = r.gathered;
    m.wake(r.waiters);
  }
  const auto describe = [&r] {
    return "in " + std::string(r.kind) + ", where " +
           std::to_string(__builtin_popcount(r.arrived)) + " of 32 lanes have arrived";
  };
  m.block_until(r.waiters, describe, [&r, generation] { return r.generation != generation; });
  return r;
}

}  // namespace

void warp_sync() {
  Machine& m = WLIB_SIM_ENTER();
  m.self->known.join(meet(m, "syncwarp", 0).released);
}

uint32_t warp_shuffle(uint32_t value, int source_lane) {
  return meet(WLIB_SIM_ENTER(), "shuffle", value).result[source_lane % kWarp];
}

uint32_t warp_ballot(bool predicate) {
  const WarpRendezvous& r = meet(WLIB_SIM_ENTER(), "ballot", predicate);
  uint32_t votes = 0;
  for (int i = 0; i < kWarp; ++i) votes |= r.result[i] << i;
  return votes;
}

// PTX leaves the choice of the leader open, so any lane may win, a different one each time.
bool warp_elect() {
  Machine& m = WLIB_SIM_ENTER();
  const WarpRendezvous& r = meet(m, "elect", 0);
  return m.self->lane() == int((r.generation * 7 + m.options.seed) % kWarp);
}

void set_max_registers(int count, bool increase) {
  Machine& m = WLIB_SIM_ENTER();
  if (count % 8 || count < 24 || count > 256)
    m.find("registers", "setmaxnreg takes multiples of 8 in [24, 256]");
  meet(m, "setmaxnreg", 0);
  RegisterPool& pool = m.self->cta->registers;
  std::vector<int>& history = pool.history[m.self->warp()];
  // One lane acts for the warp, the others wait for it.
  const WarpRendezvous& r = m.self->cta->warps[m.self->warp()];
  if (m.self->lane() != int(r.generation % kWarp)) {
    meet(m, "setmaxnreg", 0);
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
  meet(m, "setmaxnreg", 0);
}

}  // namespace wlib::sim::dev

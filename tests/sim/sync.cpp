// mbarriers, named barriers, the cluster barrier, proxy fences.
#include "sim/machine.h"

namespace wlib::sim {

void Machine::release(Knowledge& into) {
  into.join(self->known);
  tick();
}

Mbarrier& Machine::mbarrier_at(Cta& cta, const uint64_t* bar, const char* who, bool by_engine) {
  const uint32_t offset = own_shared_offset(bar, 8, who);
  const auto it = cta.mbarriers.find(offset);
  if (it == cta.mbarriers.end()) {
    find("mbarrier", own_name() + ": " + who + " on " + shared_name(cta, offset) +
                         ", which was never initialised");
    abandon();
  }
  Mbarrier& b = it->second;
  if (self->known.seen(b.init_agent) < b.init_time) {
    find("mbarrier",
         own_name() + ": " + who + " on " + b.name + " is not ordered after its initialisation");
  } else if (by_engine && !b.init_fenced) {
    find("mbarrier",
         b.name + " is used by an async copy without fence.mbarrier_init after its initialisation");
  }
  return b;
}

void Machine::try_complete_phase(Mbarrier& b) {
  if (b.pending != 0 || b.tx != 0) return;
  ++b.phase;
  b.pending = b.expected;
  b.own.completed = b.own.arriving;
  b.peers.completed = b.peers.arriving;
  wake(b.waiters);
}

void Machine::complete_tx(Mbarrier& b, uint32_t bytes, int slot) {
  b.tx -= bytes;
  b.own.arriving.see(copy_agent(slot), slots[slot].time);
  if (b.tx < -((1 << 20) - 1)) find("mbarrier-tx", "tx-count of " + b.name + " underflows");
  try_complete_phase(b);
}

// Threads that have exited are not waited for.
void Machine::try_complete_cluster_barrier() {
  Rendezvous& b = cluster_barrier;
  b.expected = 0;
  for (const Cta& cta : ctas) b.expected += cta.alive;
  if (b.arrived == 0 || b.arrived < b.expected) return;
  b.arrived = 0;
  ++b.generation;
  b.released = b.gathered;
  wake(b.waiters);
}

namespace dev {
namespace {

void arrive(Machine& m, Mbarrier& b, Mbarrier::Released& released) {
  if (b.pending == 0) {
    m.find("mbarrier", "more arrivals on " + b.name + " than its count of " +
                           std::to_string(b.expected) + " in phase " + std::to_string(b.phase));
    return;
  }
  --b.pending;
  m.release(released.arriving);
  m.try_complete_phase(b);
}

Mbarrier& wait(Machine& m, uint64_t* bar, uint32_t parity) {
  Mbarrier& b = m.mbarrier_at(*m.self->cta, bar, "wait", false);
  if (parity > 1) m.find("mbarrier", "wait parity must be 0 or 1");
  const auto describe = [&b, parity] {
    return "for parity " + std::to_string(parity) + " of " + b.name + ", which is in phase " +
           std::to_string(b.phase) + " with " + std::to_string(b.expected - b.pending) + " of " +
           std::to_string(b.expected) + " arrivals and " + std::to_string(b.tx) +
           " bytes outstanding";
  };
  m.block_until(b.waiters, describe, [&] { return (b.phase & 1) != parity; });
  m.self->known.join(b.own.completed);
  return b;
}

// bar.sync / bar.arrive. Threads are counted one by one; the hardware counts whole warps.
void named_barrier(Machine& m, int id, int threads, bool and_wait) {
  if (id < 0 || id > 15 || threads <= 0 || threads % kWarp || threads > m.config.threads) {
    m.find("named-barrier", "barrier " + std::to_string(id) + " with " + std::to_string(threads) +
                                " threads: ids are 0..15, counts whole warps of the CTA");
    m.abandon();
  }
  Rendezvous& b = m.self->cta->named[id];
  if (b.arrived == 0) {
    b.expected = threads;
    b.gathered = Knowledge(m.agents());
  } else if (b.expected != threads) {
    m.find("named-barrier", "barrier " + std::to_string(id) + " is used with thread counts " +
                                std::to_string(b.expected) + " and " + std::to_string(threads));
  }
  m.release(b.gathered);
  const uint32_t generation = b.generation;
  if (++b.arrived == b.expected) {
    b.arrived = 0;
    ++b.generation;
    // Now, not when they run: the barrier may have been used again by then.
    for (Thread* t : b.waiters) t->known.join(b.gathered);
    m.wake(b.waiters);
    if (and_wait) m.self->known.join(b.gathered);
    return;
  }
  if (!and_wait) return;
  const auto describe = [&b, id] {
    return "at named barrier " + std::to_string(id) + ", where " + std::to_string(b.arrived) +
           " of " + std::to_string(b.expected) + " threads have arrived";
  };
  m.block_until(b.waiters, describe, [&b, generation] { return b.generation != generation; });
}

}  // namespace

void mbarrier_init(uint64_t* bar, uint32_t arrivals) {
  Machine& m = WLIB_SIM_ENTER();
  Cta& cta = *m.self->cta;
  const uint32_t offset = m.own_shared_offset(bar, 8, "mbarrier.init");
  if (offset % 8) m.find("mbarrier", "mbarrier object is not 8-byte aligned");
  if (arrivals == 0 || arrivals >= (1u << 20)) m.find("mbarrier", "arrival count out of range");
  if (cta.mbarriers.count(offset))
    m.find("mbarrier", "initialised twice: " + m.shared_name(cta, offset));
  Mbarrier& b = cta.mbarriers[offset];
  b = Mbarrier{};
  b.expected = b.pending = arrivals;
  b.init_agent = m.self->agent;
  b.init_time = m.now();
  b.own = b.peers = {Knowledge(m.agents()), Knowledge(m.agents())};
  b.name = "mbarrier " + m.shared_name(cta, offset);
  cta.shadow.mark_barrier(offset);
}

void mbarrier_init_fence() {
  Machine& m = WLIB_SIM_ENTER();
  for (auto& [offset, b] : m.self->cta->mbarriers) {
    if (b.init_agent == m.self->agent) b.init_fenced = true;
  }
}

void mbarrier_arrive(uint64_t* bar) {
  Machine& m = WLIB_SIM_ENTER();
  Mbarrier& b = m.mbarrier_at(*m.self->cta, bar, "arrive", false);
  arrive(m, b, b.own);
}

void mbarrier_arrive_expect_tx(uint64_t* bar, uint32_t bytes) {
  Machine& m = WLIB_SIM_ENTER();
  Mbarrier& b = m.mbarrier_at(*m.self->cta, bar, "arrive.expect_tx", false);
  b.tx += bytes;
  if (b.tx > (1 << 20) - 1) m.find("mbarrier-tx", "tx-count of " + b.name + " overflows 2^20-1");
  arrive(m, b, b.own);
}

void mbarrier_wait(uint64_t* bar, uint32_t parity) { wait(WLIB_SIM_ENTER(), bar, parity); }

void mbarrier_arrive_cluster(uint64_t* bar, int rank) {
  Machine& m = WLIB_SIM_ENTER();
  Cta& cta = m.peer(rank);
  Mbarrier& b = m.mbarrier_at(cta, bar, "remote arrive", false);
  const bool remote = &cta != m.self->cta;
  if (remote)
    m.visit(cta, m.self->agent, m.now(), "remote arrival", m.own_shared_offset(bar, 8, "arrive"));
  arrive(m, b, remote ? b.peers : b.own);
}

void mbarrier_wait_cluster(uint64_t* bar, uint32_t parity) {
  Machine& m = WLIB_SIM_ENTER();
  const Mbarrier& b = wait(m, bar, parity);
  m.self->known.join(b.peers.completed);
}

void block_sync() {
  Machine& m = WLIB_SIM_ENTER();
  named_barrier(m, 0, m.config.threads, true);
}
void barrier_sync(int id, int threads) { named_barrier(WLIB_SIM_ENTER(), id, threads, true); }
void barrier_arrive(int id, int threads) { named_barrier(WLIB_SIM_ENTER(), id, threads, false); }

int cluster_rank() { return machine->self->cta->rank; }
int cluster_size() { return machine->config.cluster; }

void* cluster_map(const void* local, int rank) {
  Machine& m = WLIB_SIM_ENTER();
  return m.peer(rank).shared + m.own_shared_offset(local, 1, "mapa");
}

void cluster_arrive() {
  Machine& m = WLIB_SIM_ENTER();
  Thread& t = *m.self;
  if (t.at_cluster_barrier) {
    m.find("cluster", m.own_name() + " arrives twice without barrier.cluster.wait");
    m.abandon();
  }
  t.at_cluster_barrier = true;
  t.cluster_generation = m.cluster_barrier.generation;
  m.release(m.cluster_barrier.gathered);
  ++m.cluster_barrier.arrived;
  m.try_complete_cluster_barrier();
}

void cluster_wait() {
  Machine& m = WLIB_SIM_ENTER();
  Thread& t = *m.self;
  if (!t.at_cluster_barrier) {
    m.find("cluster", m.own_name() + " waits without barrier.cluster.arrive");
    m.abandon();
  }
  Rendezvous& b = m.cluster_barrier;
  const auto describe = [&b] {
    return "at the cluster barrier, where " + std::to_string(b.arrived) + " of " +
           std::to_string(b.expected) + " threads have arrived";
  };
  m.block_until(b.waiters, describe, [&] { return b.generation != t.cluster_generation; });
  t.at_cluster_barrier = false;
  t.known.join(b.released);
}

// The thread that wrote must fence, before the barrier that hands the data over.
void fence_proxy_async() {
  Machine& m = WLIB_SIM_ENTER();
  m.self->known.fence(m.self->agent);
  m.tick();
}

}  // namespace dev
}  // namespace wlib::sim

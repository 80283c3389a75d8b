// Scheduler and launch.
#include "sim/machine.h"

#include <sys/mman.h>

#include <cstring>
#include <stdexcept>

namespace wlib::sim {

Machine* machine = nullptr;

namespace {

uint8_t* map_memory(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<uint8_t*>(p);
}

void require(bool ok, const char* rule) {
  if (!ok) throw std::invalid_argument(rule);
}

// Registers per thread at launch, stated again: the machine takes nothing from kernels' headers.
int launch_registers(int threads) { return std::min(255, 65536 / threads / 8 * 8); }

}  // namespace

Machine::Machine(const LaunchConfig& config_, const Options& options_,
                 const std::vector<Buffer>& buffers, const Kernel& kernel)
    : config(config_),
      options(options_),
      random(options_.seed * 0x9e3779b97f4a7c15ull + 1),
      kernel_(kernel) {
  require(config.threads > 0 && config.threads % kWarp == 0 && config.threads <= 1024,
          "threads: warps, <= 1024");
  require(
      config.cluster > 0 && config.cluster <= kMaxCluster && config.grid.x % config.cluster == 0,
      "cluster: at most 8 CTAs, dividing grid.x");
  require(config.smem_bytes <= kMaxShared, "smem_bytes: at most 227 KB");
  for (const Buffer& b : buffers) {
    globals_.push_back({b, {}});
    if (b.writable) globals_.back().shadow.reset(b.bytes, b.initialised);
  }
  globals_.push_back({{const_cast<void*>(kernel.params), kernel.params_bytes, "kernel parameters",
                       false, false, true},
                      {}});
  find_image();
  stacks_ = map_memory(size_t(config.cluster) * config.threads * Fiber::kStackBytes);
  // A CTA's shared memory begins at a multiple of the pitch, so that host pointers and
  // shared-window addresses agree in the bits that swizzles look at.
  shared_ = map_memory((config.cluster + 1) * kSharedPitch);
}

Machine::~Machine() {
  munmap(stacks_, size_t(config.cluster) * config.threads * Fiber::kStackBytes);
  munmap(shared_, (config.cluster + 1) * kSharedPitch);
}

void Machine::start_cta(int rank, Dim3 block) {
  Cta& cta = ctas.emplace_back();
  cta.rank = rank;
  cta.block = block;
  const uintptr_t base =
      (reinterpret_cast<uintptr_t>(shared_) + kSharedPitch - 1) / kSharedPitch * kSharedPitch;
  cta.shared = reinterpret_cast<uint8_t*>(base + rank * kSharedPitch);
  std::memset(cta.shared, 0xff, config.smem_bytes);  // NaN in every format
  cta.shadow.reset(config.smem_bytes);
  cta.warps.resize(warps());
  cta.warpgroups.resize((warps() + 3) / 4);
  for (Warpgroup& g : cta.warpgroups) g.cta = &cta;
  cta.registers.history.assign(warps(), {launch_registers(config.threads)});
  cta.alive = config.threads;
  cta.at_exit = Knowledge(agents());
  for (int i = 0; i < config.threads; ++i) {
    Thread& t = threads_.emplace_back();
    t.cta = &cta;
    t.id = i;
    t.agent = rank * config.threads + i;
    t.known = Knowledge(agents());
    t.known.see(t.agent, 1);
    t.dirty.assign(Fiber::kStackBytes / 4, false);
    t.fiber.prepare(stacks_ + size_t(t.agent) * Fiber::kStackBytes, &Machine::fiber_main);
    ready_.push_back(&t);
  }
}

void Machine::run_cluster(Dim3 first_block) {
  events_.clear();
  ready_.clear();
  threads_.clear();
  ctas.clear();
  slots.assign(size_t(config.cluster) * kCopySlotsPerCta, CopySlot{});
  cluster_barrier = Rendezvous{};
  cluster_barrier.gathered = cluster_barrier.released = Knowledge(agents());
  for (int rank = 0; rank < config.cluster; ++rank) {
    start_cta(rank, {first_block.x + rank, first_block.y, first_block.z});
  }
  start_launch_before();
  run_threads();
  if (!abandoned_) report_deadlock();
  first_agent += uint32_t(agents());
}

void Machine::run_threads() {
  while (!abandoned_) {
    const bool progress = run_events(ready_.empty());
    if (ready_.empty()) {
      if (progress) continue;
      return;
    }
    if (options.schedule == Schedule::kRandom)
      std::swap(ready_.front(), ready_[random() % ready_.size()]);
    self = ready_.front();
    ready_.pop_front();
    ++step_;
    ++report.switches;
    self->fiber.resume();
    self = nullptr;
  }
}

void Machine::fiber_main() {
  machine->kernel_.call(machine->kernel_.function, machine->kernel_.params);
  machine->finish_thread();
}

void Machine::finish_thread() {
  enter(nullptr);
  if (!self->held.empty()) find("wgmma-wait", own_name() + " exits with a wgmma in flight");
  for (const auto& group : self->bulk_groups) {
    for (const CopyTicket& c : group) {
      if (slots[c.slot].time == c.time && slots[c.slot].busy) {
        find("exit", own_name() + " exits with a bulk store in flight");
      }
    }
  }
  if (!self->bulk_open.empty()) find("exit", own_name() + " exits with an uncommitted bulk store");
  Cta& cta = *self->cta;
  cta.at_exit.join(self->known);
  if (--cta.alive == 0) finish_cta(cta);
  if (self->at_cluster_barrier && self->cluster_generation == cluster_barrier.generation) {
    --cluster_barrier.arrived;  // counted as one of those that have not exited
  }
  try_complete_cluster_barrier();
  self->state = Thread::kDone;
  self->fiber.suspend();
}

// Shared memory goes away: everybody else's accesses to it must be known to be over.
void Machine::finish_cta(Cta& cta) {
  for (const auto& [agent, visit] : cta.visits) {
    if (cta.at_exit.seen(agent) >= visit.time) continue;
    find("exit", "CTA " + std::to_string(cta.rank) + " of the cluster does not wait for " +
                     agent_name(first_agent + agent) + " to finish: " + visit.what + " at " +
                     shared_name(cta, visit.offset));
  }
  if (config.dependent && !waited(cta.at_exit))
    find("grid-dependency", "CTA " + std::to_string(cta.rank) +
                                " of the cluster ends without griddepcontrol.wait, perhaps before "
                                "the launch before");
  const auto& history = cta.registers.history;
  for (int w = 0; w < warps(); ++w) {
    if (history[w] != history[w / 4 * 4]) {
      find("registers",
           "setmaxnreg is not executed alike by all warps of warpgroup " + std::to_string(w / 4));
    }
  }
}

void Machine::park() {
  const void* pc = pc_;
  self->state = Thread::kBlocked;
  self->fiber.suspend();
  pc_ = pc;
}

void Machine::wake(WaitList& list) {
  for (Thread* t : list) {
    t->state = Thread::kReady;
    ready_.push_back(t);
  }
  list.clear();
}

void Machine::yield() {
  ready_.push_back(self);
  self->fiber.suspend();
}

void Machine::abandon() {
  abandoned_ = true;
  self->fiber.suspend();  // never resumed
  __builtin_unreachable();
}

// Delays span four orders of magnitude, so some operations are overtaken by thousands of switches.
uint64_t Machine::draw_due() {
  switch (options.timing) {
    case EngineTiming::kEager: return step_;
    case EngineTiming::kLazy: return UINT64_MAX;  // only when every thread is blocked
    default: return step_ + (random() % (1ull << (random() % 14)));
  }
}

void Machine::schedule(uint64_t due, std::function<void()> run) {
  events_.emplace(std::pair(due, random()), std::move(run));
}

// Runs what is due; if all threads are blocked, the earliest event. True if any ran.
bool Machine::run_events(bool idle) {
  bool any = false;
  while (!events_.empty() && (events_.begin()->first.first <= step_ || (idle && !any))) {
    const auto run = std::move(events_.begin()->second);
    events_.erase(events_.begin());
    enter(nullptr);
    run();
    any = true;
  }
  return any;
}

void Machine::report_deadlock() {
  std::map<std::string, std::vector<int>> blocked;
  for (const Thread& t : threads_) {
    if (t.state == Thread::kBlocked) blocked[t.waits_for()].push_back(t.agent);
  }
  if (blocked.empty()) return;
  std::string text = "all remaining threads wait:";
  for (const auto& [what, who] : blocked) {
    text += "\n    ";
    if (who.size() > 1) {
      text += std::to_string(who.size()) + " threads, " + agent_name(first_agent + who.front()) +
              " .. ";
    }
    text += agent_name(first_agent + who.back()) + ": " + what;
  }
  enter(nullptr);
  find("deadlock", text);
}

Report launch(const LaunchConfig& config, const Options& options,
              const std::vector<Buffer>& buffers, const Kernel& kernel) {
  Machine m(config, options, buffers, kernel);
  machine = &m;
  for (int z = 0; z < config.grid.z; ++z) {
    for (int y = 0; y < config.grid.y; ++y) {
      for (int x = 0; x < config.grid.x; x += config.cluster) {
        if (m.report.ok()) m.run_cluster({x, y, z});
      }
    }
  }
  machine = nullptr;
  m.resolve_sources();
  return m.report;
}

namespace dev {

int thread_index() { return machine->self->id; }
int block_index(int axis) {
  const Dim3& b = machine->self->cta->block;
  return axis == 0 ? b.x : axis == 1 ? b.y : b.z;
}
int grid_size(int axis) {
  const Dim3& g = machine->config.grid;
  return axis == 0 ? g.x : axis == 1 ? g.y : g.z;
}
void* shared_base() { return machine->self->cta->shared; }
uint32_t shared_address(const void* p) {
  return kSharedWindow + WLIB_SIM_ENTER().own_shared_offset(p, 1, "shared address");
}
void debug_name(const void* pointer, size_t bytes, const char* name) {
  Machine& m = WLIB_SIM_ENTER();
  const uint32_t low = m.own_shared_offset(pointer, bytes, "debug_name");
  m.self->cta->names.push_back({low, low + uint32_t(bytes), name});
}

}  // namespace dev
}  // namespace wlib::sim

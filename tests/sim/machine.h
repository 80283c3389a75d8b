// Internal state of the simulator: one cluster at a time, a fiber per thread, one OS thread.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "sim/api.h"
#include "sim/device.h"
#include "sim/fiber.h"
#include "sim/knowledge.h"
#include "sim/shadow.h"

namespace wlib::sim {

constexpr int kWarp = 32;
constexpr int kWarpgroup = 128;
constexpr int kCopySlotsPerCta = 64;
constexpr uint32_t kSharedWindow = 1024;  // shared memory starts here: address 0 is never valid
constexpr size_t kSharedPitch = 1 << 18;  // between the CTAs of a cluster, on the host
constexpr size_t kMaxShared = 227 * 1024;
constexpr int kMaxCluster = 8;

struct Cta;
struct Thread;
using WaitList = std::vector<Thread*>;

// A range of "registers" (kernel locals on the fiber stack) that a wgmma in flight uses.
struct HeldRegisters {
  uintptr_t low, high;
  uint32_t op;  // index of the last wgmma of this warpgroup that uses the range
  bool accumulator;
  std::vector<float> value;  // accumulators live here, not in the kernel's array, while in flight
};

struct CopyTicket {  // one operation of a copy slot
  int slot;
  uint32_t time;
};

struct Thread {
  enum State { kReady, kBlocked, kDone } state = kReady;
  Cta* cta = nullptr;
  int id = 0;     // within the CTA
  int agent = 0;  // within the cluster
  Fiber fiber;
  Knowledge known;
  std::function<std::string()> waits_for;  // for the deadlock report
  bool at_cluster_barrier = false;         // arrived, and has not waited yet
  uint32_t cluster_generation = 0;

  uint32_t wgmmas_issued = 0, wgmmas_retired = 0;
  std::deque<uint32_t> wgmma_groups;  // committed: wgmmas issued up to and including the group
  std::vector<HeldRegisters> held;
  std::vector<bool> dirty;  // per stack word: touched since the last wgmma.fence
  uint32_t dirty_low = 0, dirty_high = 0;

  std::vector<CopyTicket> bulk_open;  // stores not yet committed
  std::deque<std::vector<CopyTicket>> bulk_groups;

  int warp() const { return id / kWarp; }
  int lane() const { return id % kWarp; }
};

struct Mbarrier {
  uint32_t expected = 0, pending = 0, phase = 0;
  int64_t tx = 0;
  int init_agent = 0;
  uint32_t init_time = 0;
  bool init_fenced = false;
  // What arrivals released, so far and up to the last completed phase. Arrivals from other CTAs are
  // apart: only a wait with cluster scope acquires from them.
  struct Released {
    Knowledge arriving, completed;
  } own, peers;
  WaitList waiters;
  std::string name;
};

struct Rendezvous {  // of threads that count themselves in: named barriers and the cluster barrier
  int expected = 0, arrived = 0;
  uint32_t generation = 0;
  Knowledge gathered, released;
  WaitList waiters;
};

struct WarpRendezvous {  // __syncwarp, shuffles, votes, elect, mma and ldmatrix all meet here
  using Words = std::array<uint32_t, 6>;
  uint32_t arrived = 0, generation = 0;
  std::string_view kind;
  Words deposit[kWarp] = {}, result[kWarp] = {};
  Knowledge gathered, released;
  WaitList waiters;
};

struct CopySlot {
  bool busy = false;
  uint32_t time = 0;  // the slot's own clock: one tick per operation
  WaitList waiters;
};

struct WgmmaOp {
  dev::WgmmaShape shape;
  uint64_t a_desc = 0, b_desc = 0;
  bool accumulate = false;
  int joined = 0;
  uint64_t due = 0;
  const uint32_t* a_regs[kWarpgroup] = {};
  float* d_regs[kWarpgroup] = {};
  Knowledge warp_known[4];
};

struct Warpgroup {
  Cta* cta = nullptr;
  std::deque<WgmmaOp> ops;  // not yet evaluated; ops.front() has index `evaluated`
  uint32_t evaluated = 0;
  bool armed = false;  // the evaluation of ops.front() is scheduled
  WaitList waiters;
};

struct RegisterPool {
  int free = 0;
  // Per warp: registers per thread, at launch and after each change.
  std::vector<std::vector<int>> history;
  WaitList waiters;
};

struct Cta {
  struct Name {
    uint32_t low, high;
    std::string text;
  };
  struct Visit {
    uint32_t time;
    const char* what;
    size_t offset;
  };
  int rank = 0;
  Dim3 block;
  uint8_t* shared = nullptr;
  Shadow shadow;
  std::map<uint32_t, Mbarrier> mbarriers;  // by shared offset
  Rendezvous named[16];
  std::vector<WarpRendezvous> warps;
  std::vector<Warpgroup> warpgroups;
  RegisterPool registers;
  std::vector<Name> names;
  int alive = 0;                // threads that have not exited
  Knowledge at_exit;            // what its exited threads knew
  std::map<int, Visit> visits;  // agent -> its last access that the CTA must outlive
};

class Machine {
 public:
  Machine(const LaunchConfig& config, const Options& options, const std::vector<Buffer>& buffers,
          const Kernel& kernel);
  ~Machine();
  void run_cluster(Dim3 first_block);
  void resolve_sources();  // program counters -> file:line, after the run

  // Scheduling (machine.cpp). block_until() parks the running thread on `list` until ready().
  template <class Describe, class Ready>
  void block_until(WaitList& list, Describe describe, Ready ready) {
    if (ready()) return;
    self->waits_for = describe;
    while (!ready()) {
      list.push_back(self);
      park();
    }
    self->waits_for = nullptr;
  }
  void wake(WaitList& list);
  void yield();
  // All lanes of the warp meet; the rendezvous' result[] then holds every lane's deposit.
  WarpRendezvous& meet(std::string_view kind, const WarpRendezvous::Words& words);
  [[noreturn]] void abandon();  // fatal finding: stop this cluster
  uint64_t draw_due();          // when the next asynchronous operation happens
  void schedule(uint64_t due, std::function<void()> run);

  // Findings (findings.cpp), attributed to the kernel statement that entered the machine last.
  Machine& enter(const void* pc) {
    pc_ = pc;
    return *this;
  }
  void find(const char* check, std::string message);
  void report_conflict(const Conflict& c, const Access& by, const char* what, const Cta& at);
  std::string agent_name(uint32_t agent) const;  // numbered over the launch
  bool is_wgmma(uint32_t agent) const;
  bool is_copy(uint32_t agent) const;
  std::string own_name() const { return agent_name(first_agent + self->agent); }
  std::string shared_name(const Cta& cta, size_t offset) const;

  // Knowledge. Agents of the cluster: threads CTA by CTA, warps as issuers of wgmma, copy slots.
  uint32_t now() const { return self->known.seen(self->agent); }
  void tick() { self->known.see(self->agent, now() + 1); }
  void release(
      Knowledge& into);  // what this thread did so far becomes part of `into`; the next does not
  int warps() const { return config.threads / kWarp; }
  int wgmma_agent(const Thread& t) const {
    return config.cluster * config.threads + t.cta->rank * warps() + t.warp();
  }
  int copy_agent(int slot) const { return config.cluster * (config.threads + warps()) + slot; }
  // The launch before this one, of which there is one event: that it has finished.
  int launch_before_agent() const { return copy_agent(int(slots.size())); }
  bool waited(const Knowledge& known) const { return known.seen(launch_before_agent()) > 0; }
  size_t agents() const { return size_t(launch_before_agent()) + 1; }
  Access thread_access() const { return access_by(self->agent, now(), false, self->known); }
  Access async_access() const { return access_by(self->agent, now(), true, self->known); }
  Access access_by(int agent, uint32_t time, bool async, const Knowledge& known) const {
    return {&known, first_agent, first_agent + agent, time, async};
  }

  // Memory (memory.cpp).
  // `aligned`: the type promises alignment to its size, and a GPU insists on it.
  void access(uintptr_t address, size_t bytes, bool write, bool aligned);
  uint32_t own_shared_offset(const void* p, size_t bytes, const char* who);
  void access_global(const void* p, size_t bytes, bool write, const Access& by, const char* who);
  void visit(Cta& cta, int agent, uint32_t time, const char* what, size_t offset);
  Cta& peer(int rank);

  // Asynchronous engines.
  int take_copy_slot();
  void start_copy(int slot, std::function<void()> land);
  void complete_tx(Mbarrier& bar, uint32_t bytes, int slot);
  void try_complete_phase(Mbarrier& bar);
  Mbarrier& mbarrier_at(Cta& cta, const uint64_t* bar, const char* who, bool by_engine);
  void evaluate(Warpgroup& group);
  void arm(Warpgroup& group);
  void try_complete_cluster_barrier();
  void wait_for_launch_before();

  LaunchConfig config;
  Options options;
  Report report;
  Thread* self = nullptr;    // running thread; null inside the scheduler
  uint32_t first_agent = 0;  // of the running cluster
  std::deque<Cta> ctas;      // of the running cluster
  Rendezvous cluster_barrier;
  std::vector<CopySlot> slots;
  std::mt19937_64 random;

 private:
  struct GlobalBuffer {
    Buffer info;
    Shadow shadow;  // of writable ones
  };
  static void fiber_main();
  void start_cta(int rank, Dim3 block);
  void run_threads();
  void park();
  bool run_events(bool idle);
  void report_deadlock();
  void finish_thread();
  void finish_cta(Cta& cta);
  void start_launch_before();
  void check_dependency(const Buffer& buffer, bool write, const Access& by, const char* who);
  void find_image();
  void access_stack(uintptr_t address, size_t bytes, bool write);
  void access_shared(uintptr_t address, size_t bytes, bool write);
  GlobalBuffer& global_at(const void* p, size_t bytes, const char* who);

  struct {
    bool finished = false;
    WaitList waiters;
  } launch_before_;
  std::vector<GlobalBuffer> globals_;
  std::deque<Thread> threads_;
  std::deque<Thread*> ready_;
  std::map<std::pair<uint64_t, uint64_t>, std::function<void()>>
      events_;  // (due, random tie) -> run
  std::map<std::pair<std::string, const void*>, bool> found_;
  std::vector<const void*> finding_pcs_;
  Kernel kernel_;
  uintptr_t image_low_ = 0, image_high_ = 0;  // this module: constants are readable
  uint8_t* stacks_ = nullptr;
  uint8_t* shared_ = nullptr;
  const void* pc_ = nullptr;
  uint64_t step_ = 0;
  uint32_t next_slot_ = 0;
  bool abandoned_ = false;
};

float sixteen_bits(dev::Element type, uint16_t bits);  // the value of an FP16 or BF16 number

extern Machine* machine;  // the running launch, or null

// First statement of every function of sim/device.h: findings point at the kernel's call.
#define WLIB_SIM_ENTER() machine->enter(__builtin_return_address(0))

}  // namespace wlib::sim

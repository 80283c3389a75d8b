// Shadow of a piece of memory: who wrote and who read each byte last, and whether that is ordered.
//
// A FastTrack-style happens-before detector, so a hazard is found even when the simulated schedule
// happened to be benign. It knows two proxies: a generic write is visible to the async proxy only
// through a proxy fence, while reads and async writes are ordered by barriers alone.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/knowledge.h"

namespace wlib::sim {

// Agents are numbered over the whole launch: those of the running cluster from `first` on. Earlier
// clusters are ordered with nothing.
struct Access {
  const Knowledge* known;  // of the accessing agent, about the agents of its cluster
  uint32_t first;
  uint32_t agent;
  uint32_t time;  // the agent's own clock, stored for later accesses to compare with
  bool async;     // performed by the async proxy (bulk copy, TMA, wgmma)

  bool sees(uint32_t other, uint32_t at) const {
    return other - first < known->agents() && known->seen(other - first) >= at;
  }
  bool sees_fenced(uint32_t other, uint32_t at) const {
    return other - first < known->agents() && known->fenced(other - first) >= at;
  }
};

struct Conflict {
  enum Kind {
    kNone,
    kUninitialised,
    kWriteRace,
    kReadRace,
    kMissingProxyFence,
    kBarrierObject
  } kind = kNone;
  uint32_t other = 0;  // agent
  size_t offset = 0;
};

class Shadow {
 public:
  void reset(size_t bytes, bool initialised = false);
  Conflict read(const Access& by, size_t offset, size_t bytes);
  Conflict write(const Access& by, size_t offset, size_t bytes);
  void mark_barrier(size_t offset);  // 8 bytes that only mbarrier operations may touch

 private:
  enum State : uint8_t { kPoison, kInitial, kData, kBarrier };  // kInitial: from before the launch
  struct LastWrite {
    uint32_t time = 0;
    uint32_t agent = 0;
    bool async = false;
    State state = kPoison;
  };
  struct Reader {
    uint32_t time;
    uint32_t agent;
    uint16_t mask;  // bytes of the granule
  };
  static constexpr size_t kGranule = 16;
  struct Granule {
    LastWrite write[kGranule];
    std::vector<Reader> readers;
  };

  Conflict after_write(const Access& by, const LastWrite& w, size_t offset) const;
  template <class F>
  void for_granules(size_t offset, size_t bytes, F f);

  std::vector<Granule> granules_;
};

}  // namespace wlib::sim

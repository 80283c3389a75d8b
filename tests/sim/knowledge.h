// Vector clocks: what an agent knows to have happened. "Agents" are the threads of a cluster and
// its asynchronous engines (machine.h).
//
// A cluster has thousands of agents and joins are frequent, but after a barrier everybody knows the
// same: so clocks are kept in blocks that are shared until one side changes, and a join is mostly
// pointer comparisons.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace wlib::sim {

class Knowledge {
 public:
  Knowledge() = default;
  explicit Knowledge(size_t agents) : blocks_((agents + kWidth - 1) / kWidth) {}
  Knowledge(const Knowledge& other);
  Knowledge(Knowledge&& other) noexcept : blocks_(std::move(other.blocks_)) {
    other.blocks_.clear();
  }
  Knowledge& operator=(Knowledge other) noexcept {
    blocks_.swap(other.blocks_);
    return *this;
  }
  ~Knowledge();

  // Event t of agent a happens before now if seen(a) >= t. If fenced(a) >= t, then a proxy fence of
  // agent a lies on the way, so the async proxy may rely on it, too.
  uint32_t seen(size_t agent) const { return time(agent / kWidth, agent % kWidth); }
  uint32_t fenced(size_t agent) const { return time(agent / kWidth, kWidth + agent % kWidth); }
  size_t agents() const { return blocks_.size() * kWidth; }

  void see(size_t agent, uint32_t time);  // seen(agent) = max(seen(agent), time)
  void fence(size_t agent);               // fenced(agent) = seen(agent)
  void join(const Knowledge& other);      // what either knows
  void meet(const Knowledge& other);      // what both know

 private:
  static constexpr size_t kWidth = 32;  // a warp per block
  struct Block {
    uint32_t owners = 1;
    uint32_t times[2 * kWidth] = {};  // seen, then fenced
  };

  uint32_t time(size_t block, size_t at) const {
    return blocks_[block] ? blocks_[block]->times[at] : 0;
  }
  static bool covers(const Block& a, const Block& b);
  static void drop(Block*& block);
  static void share(Block*& mine, Block* theirs);
  static Block& own(Block*& mine);

  std::vector<Block*> blocks_;  // null: all zero
};

}  // namespace wlib::sim

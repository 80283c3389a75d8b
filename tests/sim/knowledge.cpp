#include "sim/knowledge.h"

#include <algorithm>

namespace wlib::sim {

Knowledge::Knowledge(const Knowledge& other) : blocks_(other.blocks_) {
  for (Block* b : blocks_) {
    if (b) ++b->owners;
  }
}

Knowledge::~Knowledge() {
  for (Block*& b : blocks_) drop(b);
}

// Is everything in b also in a?
bool Knowledge::covers(const Block& a, const Block& b) {
  uint32_t more = 0;
  for (size_t i = 0; i < 2 * kWidth; ++i) more |= b.times[i] > a.times[i];
  return !more;
}

void Knowledge::drop(Block*& block) {
  if (block && --block->owners == 0) delete block;
  block = nullptr;
}

void Knowledge::share(Block*& mine, Block* theirs) {
  if (theirs) ++theirs->owners;
  drop(mine);
  mine = theirs;
}

// The block, not shared with anybody, for writing.
Knowledge::Block& Knowledge::own(Block*& mine) {
  if (!mine) {
    mine = new Block;
  } else if (mine->owners > 1) {
    auto* copy = new Block(*mine);
    copy->owners = 1;
    --mine->owners;
    mine = copy;
  }
  return *mine;
}

void Knowledge::see(size_t agent, uint32_t time) {
  if (seen(agent) < time) own(blocks_[agent / kWidth]).times[agent % kWidth] = time;
}

void Knowledge::fence(size_t agent) {
  if (fenced(agent) < seen(agent)) {
    Block& b = own(blocks_[agent / kWidth]);
    b.times[kWidth + agent % kWidth] = b.times[agent % kWidth];
  }
}

void Knowledge::join(const Knowledge& other) {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    Block*& mine = blocks_[i];
    Block* theirs = other.blocks_[i];
    if (mine == theirs || !theirs || (mine && covers(*mine, *theirs))) continue;
    if (!mine || covers(*theirs, *mine)) {
      share(mine, theirs);
      continue;
    }
    Block& to = own(mine);
    for (size_t j = 0; j < 2 * kWidth; ++j) to.times[j] = std::max(to.times[j], theirs->times[j]);
  }
}

void Knowledge::meet(const Knowledge& other) {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    Block*& mine = blocks_[i];
    Block* theirs = other.blocks_[i];
    if (mine == theirs || !mine || (theirs && covers(*theirs, *mine))) continue;
    if (!theirs || covers(*mine, *theirs)) {
      share(mine, theirs);
      continue;
    }
    Block& to = own(mine);
    for (size_t j = 0; j < 2 * kWidth; ++j) to.times[j] = std::min(to.times[j], theirs->times[j]);
  }
}

}  // namespace wlib::sim

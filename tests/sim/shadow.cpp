#include "sim/shadow.h"

#include <algorithm>

namespace wlib::sim {

void Shadow::reset(size_t bytes, bool initialised) {
  Granule fresh;
  for (LastWrite& w : fresh.write) w.state = initialised ? kInitial : kPoison;
  granules_.assign((bytes + kGranule - 1) / kGranule, fresh);
}

void Shadow::mark_barrier(size_t offset) {
  for (size_t i = offset; i < offset + 8; ++i) {
    granules_[i / kGranule].write[i % kGranule].state = kBarrier;
  }
}

// Calls f(granule, its offset, first byte within, mask of bytes within) all over the range.
template <class F>
void Shadow::for_granules(size_t offset, size_t bytes, F f) {
  for (size_t at = offset, end = offset + bytes; at < end;) {
    const size_t first = at % kGranule;
    const size_t count = std::min(kGranule - first, end - at);
    f(granules_[at / kGranule], at - first, first, uint16_t(((1u << count) - 1) << first));
    at += count;
  }
}

// May `by` follow the last write of this byte?
Conflict Shadow::after_write(const Access& by, const LastWrite& w, size_t offset) const {
  if (w.state == kBarrier) return {Conflict::kBarrierObject, w.agent, offset};
  if (w.state == kPoison || w.state == kInitial) return {};
  if (!by.sees(w.agent, w.time)) return {Conflict::kWriteRace, w.agent, offset};
  if (by.async && !w.async && !by.sees_fenced(w.agent, w.time)) {
    return {Conflict::kMissingProxyFence, w.agent, offset};
  }
  return {};
}

Conflict Shadow::read(const Access& by, size_t offset, size_t bytes) {
  Conflict found;
  for_granules(offset, bytes, [&](Granule& g, size_t base, size_t first, uint16_t mask) {
    for (size_t i = first; i < kGranule && (mask >> i) && !found.kind; ++i) {
      if (g.write[i].state == kPoison) {
        found = {Conflict::kUninitialised, 0, base + i};
      } else {
        found = after_write(by, g.write[i], base + i);
      }
    }
    for (Reader& r : g.readers) {
      // Same agent, later time: the new record implies the old one where the masks agree.
      if (r.agent == by.agent && (r.mask & ~mask) == 0) {
        r.time = by.time;
        r.mask = mask;
        return;
      }
    }
    g.readers.push_back({by.time, by.agent, mask});
  });
  return found;
}

Conflict Shadow::write(const Access& by, size_t offset, size_t bytes) {
  Conflict found;
  for_granules(offset, bytes, [&](Granule& g, size_t base, size_t first, uint16_t mask) {
    for (size_t i = first; i < kGranule && (mask >> i); ++i) {
      if (!found.kind) found = after_write(by, g.write[i], base + i);
      if (g.write[i].state != kBarrier) g.write[i] = {by.time, by.agent, by.async, kData};
    }
    size_t kept = 0;
    for (Reader& r : g.readers) {
      if ((r.mask & mask) && !found.kind && !by.sees(r.agent, r.time)) {
        found = {Conflict::kReadRace, r.agent, base};
      }
      // Ordered before this write, so whoever is ordered after the write is ordered after it, too.
      r.mask &= uint16_t(~mask);
      if (r.mask) g.readers[kept++] = r;
    }
    g.readers.resize(kept);
  });
  return found;
}

}  // namespace wlib::sim

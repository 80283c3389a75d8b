// The copy engines: 1-D bulk copies, 2-D tensor tiles, multicast of both, bulk stores.
#include <cstring>

#include "sim/machine.h"

namespace wlib::sim {

// Slots take turns: whoever knows the end of a slot's copy seems to know the end of its earlier
// ones, too, so these should be long over.
int Machine::take_copy_slot() {
  const auto describe = [] { return std::string("for a free copy engine"); };
  size_t slot = next_slot_++ % slots.size();
  for (size_t tries = 1; slots[slot].busy && tries < slots.size(); ++tries) {
    slot = next_slot_++ % slots.size();
  }
  block_until(slots[slot].waiters, describe, [&] { return !slots[slot].busy; });
  slots[slot].busy = true;
  ++slots[slot].time;
  ++report.copies;
  return int(slot);
}

void Machine::start_copy(int slot, std::function<void()> land) {
  schedule(draw_due(), [this, slot, land = std::move(land)] {
    slots[slot].busy = false;
    land();
    wake(slots[slot].waiters);
  });
}

namespace dev {
namespace {

void require(Machine& m, bool ok, const char* who, const char* rule) {
  if (!ok) m.find("bulk-copy", std::string(who) + ": " + rule);
}

bool aligned(const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

// Claims the destination at issue time: until the mbarrier completes, any other access races.
void load(Machine& m, Cta& cta, void* own_smem, uint32_t bytes, uint64_t* own_bar, const char* who,
          const std::function<void(uint8_t*)>& fill) {
  const uint32_t offset = m.own_shared_offset(own_smem, bytes, who);
  Mbarrier& b = m.mbarrier_at(cta, own_bar, who, true);
  const int slot = m.take_copy_slot(), agent = m.copy_agent(slot);
  const uint32_t time = m.slots[slot].time;
  m.visit(cta, agent, time, who, offset);
  const Access by = m.access_by(agent, time, true, m.self->known);
  m.report_conflict(cta.shadow.write(by, offset, bytes), by, who, cta);
  uint8_t* to = cta.shared + offset;
  std::memset(to, 0xff, bytes);
  m.start_copy(slot, [&m, &b, slot, to, bytes, fill] {
    fill(to);
    m.complete_tx(b, bytes, slot);
  });
}

void load_multicast(Machine& m, void* smem, uint32_t bytes, uint64_t* bar, uint16_t cta_mask,
                    const char* who, const std::function<void(uint8_t*)>& fill) {
  require(m, cta_mask != 0 && cta_mask >> m.config.cluster == 0, who,
          "the mask must name CTAs of the cluster");
  for (Cta& cta : m.ctas) {
    if (cta_mask >> cta.rank & 1) load(m, cta, smem, bytes, bar, who, fill);
  }
}

void bulk_load(Machine& m, void* smem, const void* global, uint32_t bytes, uint64_t* bar,
               uint16_t cta_mask) {
  const char* who = "cp.async.bulk load";
  require(m, aligned(smem, 16) && aligned(global, 16) && bytes % 16 == 0, who,
          "addresses and size need 16-byte alignment");
  m.access_global(global, bytes, false, m.async_access(), who);
  load_multicast(m, smem, bytes, bar, cta_mask, who,
                 [=](uint8_t* to) { std::memcpy(to, global, bytes); });
}

// What a box holds at (row, byte) of shared memory; outside the tensor zero.
void fill_box(const TensorMap2D& map, int column, int row, uint8_t* to) {
  // The swizzle: XOR of 16-byte chunks within a row with the number of the 128-byte line.
  const uintptr_t chunks = map.box_row_bytes / 16;
  for (uint32_t r = 0; r < map.box_rows; ++r) {
    for (uint32_t c = 0; c < map.box_row_bytes; ++c) {
      const int64_t from_row = int64_t(row) + r, from = int64_t(column) * map.element_bytes + c;
      const bool inside = from_row >= 0 && from >= 0 && uint64_t(from_row) < map.rows &&
                          uint64_t(from) < map.row_bytes;
      uintptr_t at = reinterpret_cast<uintptr_t>(to) + r * map.box_row_bytes + c;
      if (map.swizzle) at ^= (at / 128 % chunks) * 16;
      *reinterpret_cast<uint8_t*>(at) =
          inside ? map.base[from_row * map.row_stride_bytes + from] : 0;
    }
  }
}

void tensor_load(Machine& m, void* smem, const TensorMap2D& map, int column, int row, uint64_t* bar,
                 uint16_t cta_mask) {
  const char* who = "cp.async.bulk.tensor load";
  require(m, aligned(smem, 128), who, "a box needs 128-byte alignment in shared memory");
  const uint32_t row_bytes = map.box_row_bytes;
  require(m, !map.swizzle || row_bytes == 32 || row_bytes == 64 || row_bytes == 128, who,
          "rows of a swizzled box have 32, 64 or 128 bytes");
  require(m, !map.swizzle || aligned(smem, 8 * row_bytes), who,
          "a swizzled box needs eight times its rows' bytes as alignment in shared memory");
  require(m, map.box_row_bytes % 16 == 0, who, "box rows must be a multiple of 16 bytes");
  require(m, map.row_stride_bytes % 16 == 0 && aligned(map.base, 16), who,
          "row stride and base need 16-byte alignment");
  require(m, map.box_rows <= 256 && map.box_row_bytes <= 256 * map.element_bytes, who,
          "box extent exceeds 256");
  if (map.rows) {
    const size_t extent = (map.rows - 1) * map.row_stride_bytes + map.row_bytes;
    m.access_global(map.base, extent, false, m.async_access(), who);
  }
  load_multicast(m, smem, map.box_row_bytes * map.box_rows, bar, cta_mask, who,
                 [map, column, row](uint8_t* to) { fill_box(map, column, row, to); });
}

uint16_t only_self(const Machine& m) { return uint16_t(1 << m.self->cta->rank); }

}  // namespace

void bulk_load(void* smem, const void* global, uint32_t bytes, uint64_t* bar) {
  Machine& m = WLIB_SIM_ENTER();
  bulk_load(m, smem, global, bytes, bar, only_self(m));
}
void bulk_load_multicast(void* smem, const void* global, uint32_t bytes, uint64_t* bar,
                         uint16_t cta_mask) {
  bulk_load(WLIB_SIM_ENTER(), smem, global, bytes, bar, cta_mask);
}
void tensor_load_2d(void* smem, const TensorMap2D& map, int column, int row, uint64_t* bar) {
  Machine& m = WLIB_SIM_ENTER();
  tensor_load(m, smem, map, column, row, bar, only_self(m));
}
void tensor_load_2d_multicast(void* smem, const TensorMap2D& map, int column, int row,
                              uint64_t* bar, uint16_t cta_mask) {
  tensor_load(WLIB_SIM_ENTER(), smem, map, column, row, bar, cta_mask);
}

void bulk_store(void* global, const void* smem, uint32_t bytes) {
  Machine& m = WLIB_SIM_ENTER();
  const char* who = "cp.async.bulk store";
  require(m, aligned(smem, 16) && aligned(global, 16) && bytes % 16 == 0, who,
          "addresses and size need 16-byte alignment");
  const uint32_t offset = m.own_shared_offset(smem, bytes, who);
  const int slot = m.take_copy_slot();
  const uint32_t time = m.slots[slot].time;
  const Access by = m.access_by(m.copy_agent(slot), time, true, m.self->known);
  m.access_global(global, bytes, true, by, who);
  m.report_conflict(m.self->cta->shadow.read(by, offset, bytes), by, who, *m.self->cta);
  m.start_copy(slot, [=] { std::memcpy(global, smem, bytes); });
  m.self->bulk_open.push_back({slot, time});
}

void bulk_commit() {
  Thread& t = *WLIB_SIM_ENTER().self;
  t.bulk_groups.push_back(std::move(t.bulk_open));
  t.bulk_open.clear();
}

void bulk_wait_read(int pending) {
  Machine& m = WLIB_SIM_ENTER();
  Thread& t = *m.self;
  const auto describe = [] { return std::string("in cp.async.bulk.wait_group.read"); };
  while (int(t.bulk_groups.size()) > pending) {
    for (const CopyTicket& c : t.bulk_groups.front()) {
      const CopySlot& s = m.slots[c.slot];
      m.block_until(m.slots[c.slot].waiters, describe, [&] { return s.time != c.time || !s.busy; });
      t.known.see(m.copy_agent(c.slot), c.time);
    }
    t.bulk_groups.pop_front();
  }
}

}  // namespace dev
}  // namespace wlib::sim

// Every load and store of the kernel, and every global access of the copy engines, is checked here.
#include <link.h>

#include <cstdlib>

#include "sim/machine.h"

namespace wlib::sim {

uint32_t Machine::own_shared_offset(const void* p, size_t bytes, const char* who) {
  const size_t offset = static_cast<const uint8_t*>(p) - self->cta->shared;
  if (offset < config.smem_bytes && bytes <= config.smem_bytes - offset) return uint32_t(offset);
  find("smem-bounds",
       std::string(who) + ": " + std::to_string(bytes) + " bytes outside the CTA's shared memory");
  abandon();
}

void Machine::access(uintptr_t a, size_t bytes, bool write, bool aligned) {
  ++report.accesses;
  if (aligned && a % bytes) {
    find("misaligned", own_name() + ": " + (write ? "store" : "load") + " of " +
                           std::to_string(bytes) +
                           " bytes at an address that is not a multiple of them");
    abandon();  // it may well fault on the host, too
  }
  const uintptr_t shared_low = reinterpret_cast<uintptr_t>(ctas.front().shared);
  if (self->fiber.owns(a)) {
    access_stack(a, bytes, write);
  } else if (a - shared_low < config.cluster * kSharedPitch) {
    access_shared(a, bytes, write);
  } else if (write || a < image_low_ || a >= image_high_) {
    access_global(reinterpret_cast<void*>(a), bytes, write, thread_access(),
                  write ? "store" : "load");
  }
  if (options.preempt_every && random() % options.preempt_every == 0) yield();
}

// Kernel locals whose address reaches a wgmma are its registers.
void Machine::access_stack(uintptr_t a, size_t bytes, bool write) {
  for (const HeldRegisters& h : self->held) {
    if (a < h.high && a + bytes > h.low) {
      find("wgmma-register", own_name() + (write ? " writes" : " reads") +
                                 (h.accumulator ? " an accumulator" : " an A fragment") +
                                 " of a wgmma in flight (no wgmma.wait_group yet)");
    }
  }
  const auto low = uint32_t((a - self->fiber.stack_low()) / 4);
  const auto high = uint32_t((a + bytes - 1 - self->fiber.stack_low()) / 4 + 1);
  if (self->dirty_low == self->dirty_high) self->dirty_low = low, self->dirty_high = high;
  self->dirty_low = std::min(self->dirty_low, low);
  self->dirty_high = std::max(self->dirty_high, high);
  for (uint32_t i = low; i < high; ++i) self->dirty[i] = true;
}

// The CTA's own shared memory, or that of a peer through a mapped pointer.
void Machine::access_shared(uintptr_t a, size_t bytes, bool write) {
  const size_t at = a - reinterpret_cast<uintptr_t>(ctas.front().shared);
  Cta& cta = ctas[at / kSharedPitch];
  const size_t offset = at % kSharedPitch;
  const char* what = write ? "store" : "load";
  if (offset + bytes > config.smem_bytes) {
    find("smem-bounds", own_name() + ": " + what + " of " + std::to_string(bytes) + " bytes at " +
                            shared_name(cta, offset) + " of " + std::to_string(config.smem_bytes));
    abandon();
  }
  if (&cta != self->cta) visit(cta, self->agent, now(), what, offset);
  const Access by = thread_access();
  const Conflict c =
      write ? cta.shadow.write(by, offset, bytes) : cta.shadow.read(by, offset, bytes);
  report_conflict(c, by, what, cta);
}

// An access from outside that the CTA must outlive (finish_cta).
void Machine::visit(Cta& cta, int agent, uint32_t time, const char* what, size_t offset) {
  if (cta.alive == 0) {
    find("exit", agent_name(first_agent + agent) + ": " + what + " at " + shared_name(cta, offset) +
                     " after that CTA has exited");
    abandon();
  }
  cta.visits[agent] = {time, what, offset};
}

Cta& Machine::peer(int rank) {
  if (rank >= 0 && rank < config.cluster) return ctas[rank];
  find("cluster", own_name() + ": CTA " + std::to_string(rank) + " of a cluster of " +
                      std::to_string(config.cluster));
  abandon();
}

Machine::GlobalBuffer& Machine::global_at(const void* p, size_t bytes, const char* who) {
  constexpr size_t kNear = 1 << 20;
  const auto a = reinterpret_cast<uintptr_t>(p);
  const GlobalBuffer* nearest = nullptr;
  size_t nearest_gap = kNear;
  for (GlobalBuffer& g : globals_) {
    const size_t offset = a - reinterpret_cast<uintptr_t>(g.info.base);
    if (offset < g.info.bytes && bytes <= g.info.bytes - offset) return g;
    const size_t gap =
        offset < g.info.bytes + kNear ? offset - std::min(offset, g.info.bytes) : -offset;
    if (gap < nearest_gap) nearest = &g, nearest_gap = gap;
  }
  std::string text =
      own_name() + ": " + who + " of " + std::to_string(bytes) + " bytes outside every buffer";
  if (nearest) {
    const auto offset = int64_t(a - reinterpret_cast<uintptr_t>(nearest->info.base));
    text += "; nearest: " + std::string(nearest->info.name) + "+" + std::to_string(offset) +
            " of " + std::to_string(nearest->info.bytes);
  }
  find("global-bounds", text);
  abandon();
}

void Machine::access_global(const void* p, size_t bytes, bool write, const Access& by,
                            const char* who) {
  if (bytes == 0) return;
  GlobalBuffer& g = global_at(p, bytes, who);
  check_dependency(g.info, write, by, who);
  if (!g.info.writable) {
    if (write) find("global-readonly", own_name() + ": " + who + " to " + g.info.name);
    return;
  }
  const size_t offset = static_cast<const uint8_t*>(p) - static_cast<const uint8_t*>(g.info.base);
  const Conflict c = write ? g.shadow.write(by, offset, bytes) : g.shadow.read(by, offset, bytes);
  if (!c.kind) return;
  const std::string me =
      agent_name(by.agent) + ": " + who + " at " + g.info.name + "+" + std::to_string(c.offset);
  if (c.kind == Conflict::kUninitialised)
    return find("global-uninitialised", me + ", which was never written");
  if (c.kind == Conflict::kMissingProxyFence) {
    return find("proxy-fence",
                me + " through the async proxy, after a generic write of " + agent_name(c.other));
  }
  find("global-race", me + " is not ordered after the " +
                          (c.kind == Conflict::kReadRace ? "read" : "write") + " of " +
                          agent_name(c.other));
}

void Machine::find_image() {
  const auto visit_object = [](dl_phdr_info* info, size_t, void* self_) {
    auto* m = static_cast<Machine*>(self_);
    uintptr_t low = UINTPTR_MAX, high = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& ph = info->dlpi_phdr[i];
      if (ph.p_type != PT_LOAD) continue;
      low = std::min<uintptr_t>(low, info->dlpi_addr + ph.p_vaddr);
      high = std::max<uintptr_t>(high, info->dlpi_addr + ph.p_vaddr + ph.p_memsz);
    }
    const auto here = reinterpret_cast<uintptr_t>(&machine);
    if (here < low || here >= high) return 0;
    m->image_low_ = low;
    m->image_high_ = high;
    return 1;
  };
  dl_iterate_phdr(visit_object, this);
}

}  // namespace wlib::sim

// Findings: who, what, where, and the line of the kernel.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "sim/machine.h"

namespace wlib::sim {

void Machine::find(const char* check, std::string message) {
  constexpr size_t kEnough = 32;
  if (!found_.try_emplace({check, pc_}).second || report.findings.size() >= kEnough) return;
  report.findings.push_back({check, std::move(message), ""});
  finding_pcs_.push_back(pc_);
}

bool Machine::is_copy(uint32_t agent) const { return int(agent % agents()) >= copy_agent(0); }
bool Machine::is_wgmma(uint32_t agent) const {
  return int(agent % agents()) >= config.cluster * config.threads && !is_copy(agent);
}

std::string Machine::agent_name(uint32_t agent) const {
  const int cluster = int(agent / agents()), threads = config.threads;
  int a = int(agent % agents());
  const auto of_cta = [&](int rank) {
    if (config.grid.x * config.grid.y * config.grid.z == 1) return std::string();
    return " of CTA " + std::to_string(cluster * config.cluster + rank);
  };
  if (a < config.cluster * threads) {
    const int t = a % threads;
    return "thread " + std::to_string(t) + " (warp " + std::to_string(t / kWarp) + ")" +
           of_cta(a / threads);
  }
  a -= config.cluster * threads;
  if (a < config.cluster * warps()) {
    return "wgmma of warp " + std::to_string(a % warps()) + of_cta(a / warps());
  }
  return "bulk copy " + std::to_string(int(agent % agents()) - copy_agent(0));
}

std::string Machine::shared_name(const Cta& cta, size_t offset) const {
  const std::string prefix = config.cluster > 1 ? "CTA " + std::to_string(cta.rank) + "'s " : "";
  for (const Cta::Name& n : cta.names) {
    if (offset >= n.low && offset < n.high)
      return prefix + n.text + "+" + std::to_string(offset - n.low);
  }
  return prefix + "smem+" + std::to_string(offset);
}

void Machine::report_conflict(const Conflict& c, const Access& by, const char* what,
                              const Cta& at) {
  if (!c.kind) return;
  const std::string where = " at " + shared_name(at, c.offset), other = agent_name(c.other);
  const std::string me = agent_name(by.agent) + ": " + what + where;
  const bool by_wgmma = is_wgmma(c.other), by_copy = is_copy(c.other);
  switch (c.kind) {
    case Conflict::kNone: return;
    case Conflict::kUninitialised:
      return find("smem-uninitialised", me + ", which was never written");
    case Conflict::kBarrierObject: return find("mbarrier-object", me + ", which holds an mbarrier");
    case Conflict::kMissingProxyFence:
      return find("proxy-fence", me + " through the async proxy, after a generic write of " +
                                     other + " without fence.proxy.async");
    case Conflict::kWriteRace:
      if (by_copy)
        return find("smem-race-copy", me + " does not wait for " + other + " to complete");
      return find("smem-race", me + " is not ordered after the write of " + other);
    case Conflict::kReadRace: {
      const char* check = by_wgmma  ? "smem-overwrite-wgmma"
                          : by_copy ? "smem-overwrite-store"
                                    : "smem-race";
      return find(check, me + " overwrites what " + other + " may still read");
    }
  }
}

// One call of addr2line for all findings; it prints each address, then its functions' lines,
// inlined first.
void Machine::resolve_sources() {
  std::string addresses;
  std::map<size_t, std::vector<size_t>> findings_at;
  Dl_info where = {};
  for (size_t i = 0; i < report.findings.size(); ++i) {
    if (!finding_pcs_[i] || !dladdr(finding_pcs_[i], &where)) continue;
    // The address is where the call returns to; the call itself lies before.
    const size_t at =
        static_cast<const char*>(finding_pcs_[i]) - static_cast<const char*>(where.dli_fbase) - 1;
    char text[32];
    std::snprintf(text, sizeof text, " 0x%zx", at);
    if (findings_at[at].empty()) addresses += text;
    findings_at[at].push_back(i);
  }
  if (addresses.empty()) return;
  const std::string command =
      "addr2line -a -i -s -e '" + std::string(where.dli_fname) + "'" + addresses + " 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return;
  std::vector<size_t>* current = nullptr;
  for (char line[512]; std::fgets(line, sizeof line, pipe);) {
    line[std::strcspn(line, " \n")] = 0;
    if (line[0] == '0' && line[1] == 'x') {
      current = &findings_at[std::strtoull(line, nullptr, 16)];
    } else if (current) {
      for (size_t i : *current) {
        std::string& source = report.findings[i].source;
        source += (source.empty() ? "" : " < ") + std::string(line);
      }
    }
  }
  pclose(pipe);
}

}  // namespace wlib::sim

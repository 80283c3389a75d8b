// How the tokens of an append are shared out to CTAs.
#pragma once

#include <cstdint>

namespace wlib::prefill {

struct AppendPlan {
  int64_t tokens;      // of a launch; a CTA looks at the slots of all of them
  int tokens_per_cta;  // whose blocks a CTA may have to write
  int heads_per_cta;
};

// A CTA looks through the slots of the whole launch once per block it writes, which costs the
// square of the tokens: 16384 of them are 128 KiB of slots, twice a block's keys and values of 8
// heads.
constexpr int64_t kAppendTokens = 16384;
// Few tokens may each have a block of their own, as when sequences grow by one; many are the runs
// of long sequences, where most tokens are not the first of their block and a CTA of theirs has
// nothing to do.
constexpr int64_t kFewTokens = 2048;
constexpr int64_t kEnoughCtas = 2 * 132;

constexpr AppendPlan append_plan(int64_t tokens, int heads) {
  AppendPlan plan{tokens < kAppendTokens ? tokens : kAppendTokens, tokens <= kFewTokens ? 1 : 8,
                  heads};
  const int64_t blocks = plan.tokens / 64 + 1;  // at the least
  while (plan.heads_per_cta > 1 && blocks * (heads / plan.heads_per_cta) < kEnoughCtas)
    plan.heads_per_cta = (plan.heads_per_cta + 1) / 2;
  return plan;
}

}  // namespace wlib::prefill

// The attention kernel in the simulator.
#pragma once

#include <tuple>
#include <vector>

#include "sim/api.h"
#include "wlib/params/prefill.h"

namespace wlib::prefill {

// `ctas` CTAs share the items; the keys are split into `splits` parts, which a second launch
// combines. `rows` [splits][tokens][heads] is how the parts are laid out.
struct AttentionLaunch {
  int ctas, splits;
};
// `parts` float32 [splits * tokens * heads * (head_dim + 1)], if there are several splits.
sim::Report simulate_attention(const AttentionParams& params, const AttentionLaunch& launch,
                               float* parts, const sim::Options& options);

using AttentionInstance = std::tuple<int, bool, bool>;  // head_dim, FP16 scores, a row per token
std::vector<AttentionInstance> attention_instances();

// The items in the order in which CTAs take them.
struct ItemSteps {
  int sequence, first_query, rows, steps;
};
std::vector<ItemSteps> attention_items(const AttentionParams& params, int splits);

}  // namespace wlib::prefill

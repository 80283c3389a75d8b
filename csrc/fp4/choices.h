// Arguments that are one of a few words.
#pragma once

#include <span>
#include <string>

#include "torch/checks.h"
#include "wlib/params/fp4.h"

namespace wlib::fp4 {

template <class T>
struct Choice {
  const char* name;
  T value;
};

template <class T, size_t kCount>
T choose(const Checker& check, const char* argument, const std::string& word,
         const Choice<T> (&choices)[kCount]) {
  std::string expected;
  for (const Choice<T>& choice : choices) {
    if (word == choice.name) return choice.value;
    expected += (expected.empty() ? "'" : ", '") + std::string(choice.name) + "'";
  }
  check.refuse(argument, std::string(argument) + " to be one of " + expected, "'" + word + "'");
}

inline constexpr Choice<ScaleRule> kMxRules[] = {
    {"even", ScaleRule::kEven},
    {"floor", ScaleRule::kFloor},
    {"quest", ScaleRule::kQuest},
    {"quest_floor", ScaleRule::kQuestFloor},
    {"three_quarters", ScaleRule::kThreeQuarters},
};
inline constexpr Choice<ScaleRule> kNvRules[] = {
    {"amax", ScaleRule::kAmax},
    {"four_over_six", ScaleRule::kFourOverSix},
};
inline constexpr Choice<Rounding> kRoundings[] = {{"nearest", Rounding::kNearest},
                                                  {"stochastic", Rounding::kStochastic},
                                                  {"ms_eden", Rounding::kMsEden}};
inline constexpr Choice<bool> kFormats[] = {{"mxfp4", true}, {"nvfp4", false}};
inline constexpr Choice<Carrier> kCarriers[] = {
    {"none", Carrier::kNone}, {"e4m3", Carrier::kE4M3}, {"e5m2", Carrier::kE5M2}};
inline constexpr Choice<MatmulMode> kModes[] = {{"fold8", MatmulMode::kFold8},
                                                {"bf16", MatmulMode::kBF16},
                                                {"exact32", MatmulMode::kExact32},
                                                {"block_scaled", MatmulMode::kBlockScaled}};

}  // namespace wlib::fp4

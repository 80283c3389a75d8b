// Philox4x32-10 (Salmon et al., SC 2011): numbers that are a function of what they are for, so that
// every device, any launch and any order of evaluation give the same ones.
//
// A draw is keyed by (seed, tensor, basis, block): key = seed, counter = {block low, block high,
// basis, tensor}, least significant word first. Which elements a block holds depends on what is
// drawn, see below.
#pragma once

#include <bit>

#include "wlib/platform.h"

namespace wlib {

struct Draw {
  uint32_t word[4];
};

// Ten rounds; `counter` and the key in the order of the published test vectors.
WLIB_HOST_DEVICE constexpr Draw philox4x32(Draw counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  WLIB_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xd2511f53u) * c0, p1 = uint64_t(0xcd9e8d57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ key0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ key1;
    c3 = uint32_t(p0);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

WLIB_HOST_DEVICE constexpr Draw draw(uint64_t seed, uint32_t tensor, uint32_t basis,
                                     uint64_t block) {
  return philox4x32({{uint32_t(block), uint32_t(block >> 32), basis, tensor}}, uint32_t(seed),
                    uint32_t(seed >> 32));
}

// Rounds to BF16 up or down, up with the probability of the fraction cut off: `bits` are 16 random
// ones. Inf and NaN stay what they are.
WLIB_HOST_DEVICE constexpr uint16_t round_stochastic_bf16(float value, uint32_t bits) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  if ((u & 0x7f800000u) == 0x7f800000u) return uint16_t(u >> 16 | (u & 0xffffu ? 0x40 : 0));
  return uint16_t((u + (bits & 0xffffu)) >> 16);
}

// Stochastic rounding draws for eight neighbouring elements at a time: block = element / 8, 16 bits
// each, low half of a word first. This basis is none of a tensor's own.
constexpr uint32_t kRoundingBasis = 0xffffffffu;
constexpr int kRoundingBlock = 8;

WLIB_HOST_DEVICE constexpr uint32_t rounding_bits(const Draw& d, int element_in_block) {
  return d.word[element_in_block / 2] >> element_in_block % 2 * 16;
}

}  // namespace wlib

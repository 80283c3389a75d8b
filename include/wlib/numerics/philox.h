// Philox4x32-10 (Salmon et al., SC 2011): numbers that are a function of what they are for, so that
// every device, any launch and any order of evaluation give the same ones.
//
// A draw is keyed by (seed, tensor, basis, block): key = seed, counter = {block low, block high,
// basis, tensor}, least significant word first. Which elements a block holds depends on what is
// drawn, see below.
#pragma once

#include <bit>
#include <cmath>

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

// Bases of random numbers. Uniform and normal: a block is four neighbouring elements of one basis,
// a word each. Sign: a block is 32 neighbouring elements of four neighbouring bases, whose number
// in the counter is basis / 4; a word is a basis, bit e is element e.
enum class Distribution : int { kUniform, kSign, kNormal };
constexpr int kBlockElements = 4, kSignElements = 32, kSignBases = 4;

// In [-1, 1), a multiple of 2^-23.
WLIB_HOST_DEVICE constexpr float uniform_value(uint32_t word) {
  return float(int32_t(word) >> 8) * 0x1p-23f;
}
// -1 where the bit is set, else 1, times `magnitude`.
WLIB_HOST_DEVICE constexpr float sign_value(uint32_t word, int bit, float magnitude) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) ^ (word << (31 - bit) & 1u << 31));
}

struct NormalPair {
  float value[2];
};

// ln(x) for x in (0, 1]. Like all that normal numbers are made of, written with fused and correctly
// rounded operations only, so that compilers have no choice and every device gives the same bits.
WLIB_HOST_DEVICE float defined_log(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x) + (0x3f800000u - 0x3f3504f3u);  // at sqrt(1/2)
  const float exponent = float(int32_t(bits >> 23) - 127);
  const float f = std::bit_cast<float>((bits & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  const float s = f / (2.0f + f), z = s * s;  // ln(1 + f) = 2 atanh(s)
  const float series =
      fmaf(fmaf(fmaf(fmaf(z, 2.0f / 11, 2.0f / 9), z, 2.0f / 7), z, 2.0f / 5), z, 2.0f / 3);
  const float tail = fmaf(s, z * series, exponent * 1.42860677e-6f);  // the rest of ln 2
  return fmaf(exponent, 0.693145752f, fmaf(2.0f, s, tail));
}

// Box-Muller: sqrt(-2 ln u) times cos and sin of an angle of 2^24 steps, u a multiple of 2^-24 in
// (0, 1]. Standard normal up to the error of the series, below 2^-20, and |value| < 5.8.
WLIB_HOST_DEVICE NormalPair normal_values(uint32_t word0, uint32_t word1) {
  const float radius = sqrtf(-2.0f * defined_log(float((word0 >> 8) + 1) * 0x1p-24f));
  const uint32_t turn = (word1 >> 8) + (1u << 21), quadrant = turn >> 22;
  const float x = float(int32_t(turn & 0x3fffffu) - (1 << 21)) * (1.57079633f * 0x1p-22f);
  const float z = x * x;
  const float sine =
      fmaf(x, z * fmaf(fmaf(fmaf(z, 1.0f / 362880, -1.0f / 5040), z, 1.0f / 120), z, -1.0f / 6), x);
  const float cosine =
      fmaf(fmaf(fmaf(fmaf(z, 1.0f / 40320, -1.0f / 720), z, 1.0f / 24), z, -0.5f), z, 1.0f);
  const float c = quadrant & 1 ? sine : cosine, s = quadrant & 1 ? cosine : sine;
  return {{radius * ((quadrant + 1) & 2 ? -c : c), radius * (quadrant & 2 ? -s : s)}};
}

}  // namespace wlib

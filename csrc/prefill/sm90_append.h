// Keys and values into the INT4 cache: scale = absmax / 7 per token and head, codes packed as
// layout/int4_kv.h says.
//
// The values of 64 tokens share bytes, so a block has one writer: the CTA of its first token in the
// launch. That CTA looks through all slots of the launch, in whatever order they come; a slot given
// twice goes to the last of its tokens. Keys go from registers to memory, 16 bytes per token and 32
// channels. Values meet in shared memory, one byte a code, and leave as units of 32 slots; what
// other tokens of a unit have stored before is read and kept.
#pragma once

#include "prefill/sm90_heads.h"
#include "wlib/layout/int4_kv.h"
#include "wlib/numerics/quotient.h"

namespace wlib::prefill {

constexpr int kAppendWarps = 8;
constexpr int kAppendThreads = kAppendWarps * sm90::kWarpThreads;
constexpr int kUnitSlots = int4kv::kUnitColumns;
constexpr int kNoToken = -1;

struct AppendLaunch {
  AppendParams p;      // of the tokens of this launch
  int tokens_per_cta;  // grid: (tokens / tokens_per_cta, heads / heads_per_cta), rounded up
  int heads_per_cta;
};

template <int kHeadDim>
struct AppendSmem {
  // The token for each slot of the block, as far as each warp has seen, then of all.
  int32_t token[kAppendWarps][int4kv::kBlockTokens];
  int32_t earlier[kAppendWarps];  // whether the warp saw the block in a token before the CTA's
  // E4M3 bytes of the values, [slot as int4kv::value_slot counts][channel].
  alignas(16) uint8_t values[int4kv::kBlockTokens][kHeadDim];
};

WLIB_DEVICE int64_t block_of(int64_t slot) { return slot >> 6; }  // negative slots: negative blocks

// Fills s.token for `block`; false if a token before `first` has the block.
template <class Smem>
WLIB_DEVICE bool find_tokens(const AppendParams& p, Smem& s, int64_t block, int64_t first) {
  const int warp = sm90::warp_index(), lane = sm90::lane_index();
  for (int slot = lane; slot < int4kv::kBlockTokens; slot += sm90::kWarpThreads)
    s.token[warp][slot] = kNoToken;
  sm90::warp_sync();
  // Each warp takes a range of tokens, in order, so that later ones overwrite.
  const int64_t share = (p.tokens + kAppendThreads - 1) / kAppendThreads * sm90::kWarpThreads;
  const int64_t begin = warp * share, end = begin + share < p.tokens ? begin + share : p.tokens;
  bool earlier = false;
  for (int64_t at = begin; at < end; at += sm90::kWarpThreads) {
    const int64_t token = at + lane;
    const int64_t slot = token < end ? p.slots[token] : -1;
    uint32_t found = sm90::warp_ballot(block_of(slot) == block);
    if (found && at + sm90::lowest_bit(found) < first) earlier = true;
    for (; found; found &= found - 1) {
      const int from = sm90::lowest_bit(found);
      const int within = int(sm90::warp_shuffle(uint32_t(slot) & 63u, from));
      if (lane == 0) s.token[warp][within] = int32_t(at + from);
    }
  }
  if (lane == 0) s.earlier[warp] = earlier;
  sm90::block_sync();
  bool owned = true;
  WLIB_UNROLL
  for (int w = 0; w < kAppendWarps; ++w) owned &= !s.earlier[w];
  if (owned && sm90::thread_index() < int4kv::kBlockTokens) {
    int32_t last = kNoToken;
    WLIB_UNROLL
    for (int w = 0; w < kAppendWarps; ++w) {
      const int32_t token = s.token[w][sm90::thread_index()];
      last = token == kNoToken ? last : token;
    }
    s.token[0][sm90::thread_index()] = last;
  }
  sm90::block_sync();
  return owned;
}

// A thread's eight channels of a unit of 32: four in the first half, four in the second.
WLIB_DEVICE int first_channel(int thread) { return thread / 4 * kUnitSlots + thread % 4 * 4; }

WLIB_DEVICE void smooth_keys(const AppendParams& p, int64_t at, float (&x)[kHeadChannels]) {
  WLIB_UNROLL
  for (int half = 0; half < 2; ++half) {
    float* v = x + half * kRunChannels;
    if (p.mean) {
      const float4 mean = load_floats(p.mean + at + half * 16);
      v[0] -= mean.x, v[1] -= mean.y, v[2] -= mean.z, v[3] -= mean.w;
    }
    if (p.smooth) {
      const float4 factor = load_floats(p.smooth + at + half * 16);
      v[0] *= factor.x, v[1] *= factor.y, v[2] *= factor.z, v[3] *= factor.w;
    }
  }
}

// The E4M3 bytes of four codes: a sign and three bits of magnitude each.
WLIB_DEVICE uint32_t code_bytes(const Quotient& quotient, bool any, const float* x) {
  uint32_t bytes = 0;
  WLIB_UNROLL
  for (int i = 0; i < kRunChannels; ++i) {
    constexpr float kLargest = int4kv::kLargestCode;
    const float rounded = rintf(quotient(x[i]));
    const int code = any ? int(fminf(fmaxf(rounded, -kLargest), kLargest)) : 0;
    bytes |= uint32_t(code < 0 ? 0x80 - code : code) << (8 * i);
  }
  return bytes;
}
WLIB_DEVICE uint32_t rotate_left4(uint32_t x) { return x << 4 | x >> 28; }
// The inverse of int4kv::first_bytes and second_bytes.
WLIB_DEVICE uint32_t join_bytes(uint32_t first, uint32_t second) {
  return first | rotate_left4(second);
}

// Codes of the head's keys and values for one slot; scales by the first thread.
template <class T, int kHeadDim>
WLIB_DEVICE void quantize_slot(const AppendParams& p, AppendSmem<kHeadDim>& s, int64_t block,
                               int head, int slot) {
  const int32_t token = s.token[0][slot];
  const int thread = HeadThreads<kHeadDim>::thread(), channel = first_channel(thread);
  const int64_t at = block * p.heads + head, run = at * int4kv::block_bytes(kHeadDim);
  float k[kHeadChannels] = {}, v[kHeadChannels] = {};
  if (token != kNoToken) {
    load_channels<T>(p.k, p.k_stride, token, head, channel, kUnitSlots / 2, k);
    load_channels<T>(p.v, p.v_stride, token, head, channel, kUnitSlots / 2, v);
    smooth_keys(p, int64_t(head) * kHeadDim + channel, k);
  }
  const float k_scale = largest_of_head<kHeadDim>(k) / int4kv::kLargestCode,
              v_scale = largest_of_head<kHeadDim>(v) / int4kv::kLargestCode;
  const auto usable = [](float scale) { return scale > 0 && scale < INFINITY; };
  const Quotient by_k(k_scale), by_v(v_scale);
  const bool any_k = usable(k_scale), any_v = usable(v_scale);
  uint32_t* to = reinterpret_cast<uint32_t*>(&s.values[int4kv::value_slot(slot)][channel]);
  to[0] = code_bytes(by_v, any_v, v);
  to[4] = code_bytes(by_v, any_v, v + kRunChannels);
  if (token == kNoToken) return;
  // Unit thread / 4 of the token's row, word thread % 4.
  const int64_t unit = (int64_t(thread / 4) * int4kv::kBlockTokens + slot) * 16;
  *reinterpret_cast<uint32_t*>(p.k_cache + run + unit + thread % 4 * 4) =
      join_bytes(code_bytes(by_k, any_k, k), code_bytes(by_k, any_k, k + kRunChannels));
  if (thread == 0) {
    p.k_scale[at * int4kv::kBlockTokens + slot] = k_scale;
    p.v_scale[at * int4kv::kBlockTokens + slot] = v_scale;
  }
}

// Which of 32 slots, in the values' order, have a token: bit i of word slots / 32.
template <class Smem>
WLIB_DEVICE void find_present(const Smem& s, uint32_t (&present)[2]) {
  WLIB_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int slot = i * kUnitSlots + sm90::lane_index();
    // value_slot permutes each 16 slots; its inverse: slot 4q + 2b + a is token 8b + 2q + a.
    const int in16 = slot % 16, token = slot - in16 + in16 / 2 % 2 * 8 + in16 / 4 * 2 + in16 % 2;
    present[i] = sm90::warp_ballot(s.token[0][token] != kNoToken);
  }
}

// The bits that four slots own of a word's first or second columns.
WLIB_DEVICE uint32_t owned_bytes(uint32_t four) {
  return ((four & 15u) * 0x00204081u & 0x01010101u) * (int4kv::kCodeMask & 0xffu);
}

// Units of 16 bytes, thread by thread along the channels.
template <int kHeadDim>
WLIB_DEVICE void store_values(const AppendParams& p, const AppendSmem<kHeadDim>& s,
                              const uint32_t (&present)[2], int64_t block, int head) {
  uint8_t* run = p.v_cache + (block * p.heads + head) * int4kv::block_bytes(kHeadDim);
  for (int i = sm90::thread_index(); i < 2 * kHeadDim; i += kAppendThreads) {
    const int half = i / kHeadDim, channel = i % kHeadDim;
    const uint32_t mine = half == 0 ? present[0] : present[1];
    if (mine == 0) continue;
    uint32_t* unit = reinterpret_cast<uint32_t*>(run + int64_t(i) * 16);
    uint32_t word[4];
    WLIB_UNROLL
    for (int w = 0; w < 4; ++w) {
      uint32_t first = 0, second = 0;
      WLIB_UNROLL
      for (int b = 0; b < 4; ++b) {
        const int slot = half * kUnitSlots + 4 * w + b;
        first |= uint32_t(s.values[slot][channel]) << (8 * b);
        second |= uint32_t(s.values[slot + 16][channel]) << (8 * b);
      }
      word[w] = join_bytes(first, second);
    }
    if (mine != ~0u) {
      WLIB_UNROLL
      for (int w = 0; w < 4; ++w) {
        const uint32_t owned =
            join_bytes(owned_bytes(mine >> (4 * w)), owned_bytes(mine >> (16 + 4 * w)));
        word[w] |= unit[w] & ~owned;  // codes of absent tokens are 0 in word
      }
    }
    *reinterpret_cast<uint4*>(unit) = uint4{word[0], word[1], word[2], word[3]};
  }
}

template <class T, int kHeadDim>
WLIB_DEVICE void append_block(const AppendLaunch& l, AppendSmem<kHeadDim>& s, int64_t block) {
  const AppendParams& p = l.p;
  constexpr int kRows = kAppendWarps * HeadThreads<kHeadDim>::kHeads;
  uint32_t present[2];
  find_present(s, present);
  const int first = sm90::block_index_y() * l.heads_per_cta,
            end = first + l.heads_per_cta < p.heads ? first + l.heads_per_cta : p.heads;
  const int row = sm90::thread_index() / HeadThreads<kHeadDim>::kThreads;
  for (int head = first; head < end; ++head) {
    for (int slot = row; slot < int4kv::kBlockTokens; slot += kRows)
      quantize_slot<T>(p, s, block, head, slot);
    sm90::block_sync();
    store_values(p, s, present, block, head);
    sm90::block_sync();  // the next head, or block, uses the same memory
  }
}

template <class T, int kHeadDim>
WLIB_KERNEL_RESIDENT(kAppendThreads, 4)
append_kernel(WLIB_GRID_CONSTANT AppendLaunch l) {
  auto& s = sm90::dynamic_smem<AppendSmem<kHeadDim>>();
  const AppendParams& p = l.p;
  const int64_t begin = int64_t(sm90::block_index_x()) * l.tokens_per_cta;
  for (int64_t token = begin; token < begin + l.tokens_per_cta && token < p.tokens; ++token) {
    const int64_t block = block_of(p.slots[token]);
    if (block < 0 || block >= p.blocks) continue;
    // Most tokens follow one of their own block.
    if (token > 0 && block_of(p.slots[token - 1]) == block) continue;
    if (find_tokens(p, s, block, token)) append_block<T>(l, s, block);
    sm90::block_sync();  // tokens are read before those of the next block are looked for
  }
}

}  // namespace wlib::prefill

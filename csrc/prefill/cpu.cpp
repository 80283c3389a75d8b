#include "prefill/cpu.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu_isa.h"
#include "prefill/cpu_kernels.h"
#include "wlib/layout/int4_tokens.h"
#include "wlib/numerics/e4m3.h"
#include "wlib/numerics/rope.h"

namespace wlib::prefill {

WLIB_DECLARE_PER_ISA(CpuKernels, kKernels)

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = WLIB_PICK_ISA(kKernels);
  return chosen;
}

namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

float load(const void* from, FloatType type, int64_t at) {
  switch (type) {
    case FloatType::kFloat32: return static_cast<const float*>(from)[at];
    case FloatType::kBFloat16: return static_cast<const BFloat16*>(from)[at];
    default: return static_cast<const Half*>(from)[at];
  }
}
void store(void* to, FloatType type, int64_t at, float value) {
  switch (type) {
    case FloatType::kFloat32: static_cast<float*>(to)[at] = value; break;
    case FloatType::kBFloat16: static_cast<BFloat16*>(to)[at] = value; break;
    default: static_cast<Half*>(to)[at] = value;
  }
}

// max |x| with NaN beating every number.
float largest_magnitude(const std::vector<float>& x) {
  float largest = 0;
  for (float value : x) {
    if (std::isnan(value)) return value;
    largest = std::max(largest, std::fabs(value));
  }
  return largest;
}
int int4_code(float value, float scale) {
  if (!(scale > 0) || !std::isfinite(scale)) return 0;
  return int(std::clamp(std::nearbyint(value / scale), -7.0f, 7.0f));
}

// The queries of one KV head that go over the keys together: a few positions, all heads that share
// the keys.
struct Tile {
  int sequence, kv_head, first_query, queries;
};

class Attention {
 public:
  explicit Attention(const AttentionParams& p)
      : p_(p), group_(p.heads / p.kv_heads), positions_(std::max(1, kMaxRows / group_)) {}

  std::vector<Tile> tiles() const {
    std::vector<Tile> all;
    for (int b = 0; b < p_.batch; ++b) {
      for (int h = 0; h < p_.kv_heads; ++h) {
        for (int first = 0; first < queries(b); first += positions_)
          all.push_back({b, h, first, std::min(positions_, queries(b) - first)});
      }
    }
    return all;
  }

  void run(const Tile& tile) const {
    const int rows = tile.queries * group_, dim = p_.head_dim;
    std::vector<float> q(rows * dim), mean(rows), out(rows * dim), tokens(kBlock * dim),
        scores(rows * kBlock);
    std::vector<RowState> state(rows, {-std::numeric_limits<float>::infinity(), 0});
    load_queries(tile, q, mean);
    const int64_t keys = p_.cached[tile.sequence] + (p_.k_new ? queries(tile.sequence) : 0);
    const KeyRange all = {range(tile, 0, keys).begin, range(tile, tile.queries - 1, keys).end};
    std::vector<int> begin(rows), end(rows);
    for (int64_t first = all.begin / kBlock * kBlock; first < all.end; first += kBlock) {
      for (int r = 0; r < rows; ++r) {
        const KeyRange visible = range(tile, r / group_, keys);
        begin[r] = int(std::clamp<int64_t>(visible.begin - first, 0, kBlock));
        end[r] = int(std::clamp<int64_t>(visible.end - first, 0, kBlock));
      }
      load_keys(tile, first, keys, tokens.data());
      kernels_.multiply_keys(q.data(), tokens.data(), rows, dim, scores.data());
      if (p_.softcap > 0) cap(scores, mean);
      kernels_.softmax(scores.data(), begin.data(), end.data(), rows, dim, state.data(),
                       out.data());
      load_values(tile, first, keys, tokens.data());
      kernels_.add_values(scores.data(), tokens.data(), rows, dim, out.data());
    }
    for (int r = 0; r < rows; ++r)
      finish(tile, r, p_.softcap > 0 ? 0 : mean[r], state[r], &out[r * dim]);
  }

 private:
  int queries(int sequence) const { return p_.starts[sequence + 1] - p_.starts[sequence]; }
  KeyRange range(const Tile& tile, int query, int64_t keys) const {
    return visible_keys(tile.first_query + query, queries(tile.sequence), keys, p_.causal,
                        p_.window_left, p_.window_right);
  }
  int64_t token(const Tile& tile, int row) const {
    return p_.starts[tile.sequence] + tile.first_query + row / group_;
  }
  int head(const Tile& tile, int row) const { return tile.kv_head * group_ + row % group_; }

  // Queries times all their scales, and their scores with the keys' mean.
  void load_queries(const Tile& tile, std::vector<float>& q, std::vector<float>& mean) const {
    for (int r = 0; r < int(mean.size()); ++r) {
      const int64_t at = token(tile, r) * p_.heads + head(tile, r);
      const float scale = p_.q_scale[at] * p_.softmax_scale;
      for (int d = 0; d < p_.head_dim; ++d) {
        const float value = e4m3_to_float(p_.q[at * p_.head_dim + d]) * scale;
        q[r * p_.head_dim + d] = value;
        if (p_.key_mean) mean[r] += value * p_.key_mean[tile.kv_head * p_.head_dim + d];
      }
    }
  }
  void cap(std::vector<float>& scores, const std::vector<float>& mean) const {
    for (size_t i = 0; i < scores.size(); ++i)
      scores[i] = p_.softcap * std::tanh((scores[i] + mean[i / kBlock]) / p_.softcap);
  }

  // The 64 tokens from `first` on, as f(token of the block, index among the new ones) where they
  // are not cached; slots beyond the sequence become zero.
  template <class Unpack, class New>
  void load_block(const Tile& tile, int64_t first, int64_t keys, const uint8_t* cache,
                  const float* cache_scale, Unpack unpack, New load_new) const {
    const int64_t cached = p_.cached[tile.sequence];
    float scale[kBlock] = {};
    if (first < cached && !p_.token_rows) {
      const int64_t page = p_.page_table[tile.sequence * p_.max_blocks + first / kBlock],
                    at = page * p_.kv_heads + tile.kv_head;
      std::copy_n(cache_scale + at * kBlock, std::min<int64_t>(kBlock, cached - first), scale);
      unpack(cache + at * int4kv::block_bytes(p_.head_dim), scale);
    }
    for (int t = int(std::clamp<int64_t>(cached - first, 0, kBlock)); t < kBlock; ++t) {
      const bool exists = first + t < keys;
      load_new(t, exists ? p_.starts[tile.sequence] + first + t - cached : -1);
    }
  }
  // out[token * token_step + channel * channel_step] of the cached tokens among the 64 from
  // `first`.
  void unpack_rows(const Tile& tile, int64_t first, const uint8_t* cache, const RowStrides& rows,
                   const float* cache_scale, const RowStrides& scale_rows, int token_step,
                   int channel_step, float* out) const {
    const int64_t end = std::min<int64_t>(p_.cached[tile.sequence], first + kBlock);
    for (int64_t at = first; at < end; ++at) {
      const int64_t page = p_.page_table[tile.sequence * p_.max_blocks + at / p_.block_tokens];
      const auto offset = [&](const RowStrides& stride) {
        return row_offset(stride, page, at % p_.block_tokens, tile.kv_head);
      };
      const uint8_t* row = cache + offset(rows);
      const float stored = cache_scale[offset(scale_rows) / int64_t(sizeof(float))],
                  scale = int4tokens::scale_of_row(stored);
      const int zero = int(int4tokens::zero_point(stored));
      for (int d = 0; d < p_.head_dim; ++d) {
        out[(at - first) * token_step + d * channel_step] =
            float(int4tokens::load_code(row, d) - zero) * scale;
      }
    }
  }
  float new_value(const Tile& tile, const uint8_t* codes, const float* scale, int64_t index,
                  int d) const {
    if (index < 0) return 0;
    const int64_t at = index * p_.kv_heads + tile.kv_head;
    return e4m3_to_float(codes[at * p_.head_dim + d]) * scale[at];
  }
  void load_keys(const Tile& tile, int64_t first, int64_t keys, float* out) const {
    if (p_.token_rows) {
      unpack_rows(tile, first, p_.k_cache, p_.k_rows, p_.k_scale, p_.k_scale_rows, 1, kBlock, out);
    }
    load_block(
        tile, first, keys, p_.k_cache, p_.k_scale,
        [&](const uint8_t* run, const float* scale) {
          kernels_.unpack_keys(run, scale, p_.head_dim, out);
        },
        [&](int t, int64_t index) {
          for (int d = 0; d < p_.head_dim; ++d)
            out[d * kBlock + t] = new_value(tile, p_.k_new, p_.k_new_scale, index, d);
        });
  }
  void load_values(const Tile& tile, int64_t first, int64_t keys, float* out) const {
    if (p_.token_rows) {
      unpack_rows(tile, first, p_.v_cache, p_.v_rows, p_.v_scale, p_.v_scale_rows, p_.head_dim, 1,
                  out);
    }
    load_block(
        tile, first, keys, p_.v_cache, p_.v_scale,
        [&](const uint8_t* run, const float* scale) {
          kernels_.unpack_values(run, scale, p_.head_dim, out);
        },
        [&](int t, int64_t index) {
          for (int d = 0; d < p_.head_dim; ++d)
            out[t * p_.head_dim + d] = new_value(tile, p_.v_new, p_.v_new_scale, index, d);
        });
  }

  void finish(const Tile& tile, int row, float mean, RowState state, const float* out) const {
    const int64_t m = token(tile, row);
    const int h = head(tile, row);
    float sum = state.sum, rescale = 1, largest = state.largest;
    if (p_.sinks) {  // relative to the larger of the two, so that neither overflows
      const float sink = p_.sinks[h] - mean;
      if (sink > largest) {
        rescale = std::exp(largest - sink);
        sum = sum * rescale + 1;
        largest = sink;
      } else if (largest > -std::numeric_limits<float>::infinity()) {
        sum += std::exp(sink - largest);
      }
    }
    const float factor = sum == 0 ? 0 : rescale / sum;  // a row that sees nothing is zero
    for (int d = 0; d < p_.head_dim; ++d)
      store(p_.out, p_.out_type, (m * p_.heads + h) * p_.head_dim + d, out[d] * factor);
    p_.lse[h * p_.tokens + m] = largest + std::log(sum) + mean;
  }

  const AttentionParams& p_;
  const int group_, positions_;
  const CpuKernels& kernels_ = cpu_kernels();
};

}  // namespace

void append_cpu(const AppendParams& p) {
  const auto append = [&](const void* from, const int64_t(&stride)[2], int64_t token, int head,
                          const float* mean, const float* smooth, std::vector<float>& values) {
    for (int d = 0; d < p.head_dim; ++d) {
      values[d] = load(from, p.type, token * stride[0] + head * stride[1] + d);
      if (mean) values[d] -= mean[head * p.head_dim + d];
      if (smooth) values[d] *= smooth[head * p.head_dim + d];
    }
    return largest_magnitude(values) / int4kv::kLargestCode;
  };
  // Tokens share bytes, heads do not.
  torch::stable::parallel_for(0, p.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> values(p.head_dim);
    for (int64_t token = 0; token < p.tokens; ++token) {
      if (p.slots[token] < 0) continue;
      const int64_t block = p.slots[token] / int4kv::kBlockTokens;
      const int slot = int(p.slots[token] % int4kv::kBlockTokens);
      for (int head = int(begin); head < int(end); ++head) {
        const int64_t at = block * p.heads + head, run = at * int4kv::block_bytes(p.head_dim);
        const float k_scale = append(p.k, p.k_stride, token, head, p.mean, p.smooth, values);
        for (int d = 0; d < p.head_dim; ++d) {
          int4kv::store_code(p.k_cache + run, int4kv::key_position(slot, d),
                             int4_code(values[d], k_scale));
        }
        const float v_scale = append(p.v, p.v_stride, token, head, nullptr, nullptr, values);
        for (int d = 0; d < p.head_dim; ++d) {
          int4kv::store_code(p.v_cache + run, int4kv::value_position(slot, d, p.head_dim),
                             int4_code(values[d], v_scale));
        }
        p.k_scale[at * int4kv::kBlockTokens + slot] = k_scale;
        p.v_scale[at * int4kv::kBlockTokens + slot] = v_scale;
      }
    }
  });
}

void quantize_queries_cpu(const QuantizeQueriesParams& p) {
  torch::stable::parallel_for(0, p.tokens * p.heads, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> x(p.head_dim), q(p.head_dim);
    const int half = p.head_dim / 2;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t token = row / p.heads;
      const int head = int(row % p.heads), kv_head = head / (p.heads / p.kv_heads);
      for (int d = 0; d < p.head_dim; ++d)
        x[d] = load(p.q, p.type, token * p.stride[0] + head * p.stride[1] + d);
      for (int d = 0; d < p.head_dim; ++d) {
        q[d] = x[d];
        if (p.cos) {  // channels d and d + half turn into each other
          const float c = p.cos[token * half + d % half], s = p.sin[token * half + d % half];
          const float partner = d < half ? -x[d + half] : x[d - half];
          q[d] = rotate(x[d], partner, c, s);
        }
        if (p.smooth) q[d] /= p.smooth[kv_head * p.head_dim + d];
      }
      const float scale = largest_magnitude(q) / kE4M3Max;
      p.scale[row] = scale;
      for (int d = 0; d < p.head_dim; ++d)
        p.codes[row * p.head_dim + d] = scale == 0 ? 0 : float_to_e4m3(q[d] / scale);
    }
  });
}

void attention_cpu(const AttentionParams& p) {
  const Attention attention(p);
  const std::vector<Tile> tiles = attention.tiles();
  torch::stable::parallel_for(0, int64_t(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) attention.run(tiles[i]);
  });
}

}  // namespace wlib::prefill

// Attention with FP8 queries over INT4 keys and values, and over new FP8 ones behind them (sm_90a;
// also runs in the simulator).
//
// A persistent CTA takes one item after the other: 128 rows (positions x the heads that share a KV
// head) of one sequence, and a part of its keys in steps of 64. The producer warpgroup turns INT4
// blocks into E4M3 tiles; two consumer warpgroups own 64 rows each. A consumer has three things in
// flight: the scores of the next step, the softmax of this one, and the products with the values of
// the last one. While one consumer computes its softmax, the other one's wgmmas run: they take
// turns at issuing.
//
// The products with the values of a step start from zero, a slice of columns at a time, and are
// added to the output in FP32: out = factor * out + slice. This is the rescaling that softmax needs
// anyhow, and the promotion that FP8 accumulators need. The output is in units of the largest value
// scale of the last step, so factor holds the ratio of the two.
#pragma once

#include "prefill/sm90_attention_expand.h"
#include "prefill/sm90_attention_half.h"
#include "prefill/sm90_attention_rows.h"
#include "prefill/sm90_attention_tokens.h"

namespace wlib::prefill {

constexpr int kTurnBarrier = 2;                              // and one more: consumer 0's and 1's
constexpr int kConsumerBarrier = kTurnBarrier + kConsumers;  // among the threads of a consumer

// What a consumer warpgroup keeps in registers. Steps follow one another without a look at items:
// the ring goes on.
template <class C>
struct Consumer {
  AttentionSmem<C>& s;
  const int index;
  sm90::RingCursor<C::kStages> scores_at, softmax_at, values_at;  // the three steps in flight
  typename C::Score scores[C::kScores], next[C::kAhead ? C::kScores : 1];
  float slice[C::kSliceRegs], out[C::kSlices][C::kSliceRegs];
  uint32_t p[kKeys / 32][4];
  float factor[2];  // of the output before the products with `p` are added

  WLIB_DEVICE Consumer(AttentionSmem<C>& smem, int consumer) : s(smem), index(consumer) {}

  WLIB_DEVICE int first_row() const {
    return index * kConsumerRows + sm90::accumulator_row(sm90::thread_in_warpgroup(), 0);
  }
  WLIB_DEVICE void begin_turn() { sm90::barrier_sync(kTurnBarrier + index, kConsumers * 128); }
  WLIB_DEVICE void end_turn() { sm90::barrier_arrive(kTurnBarrier + 1 - index, kConsumers * 128); }

  // to = q k^T
  WLIB_DEVICE void issue_scores(typename C::Score (&to)[C::kScores]) {
    s.ring.wait_full(scores_at);
    const int stage = scores_at.stage;
    const uint64_t q = sm90::swizzled_tile_descriptor(s.q[index]);
    const uint64_t k = sm90::swizzled_tile_descriptor(s.k + key_tile<C>(stage)) +
                       uint32_t(key_column<C>(stage) >> 4);
    sm90::wgmma_fence();
    WLIB_UNROLL
    for (int step = 0; step < C::kHeadDim / 32; ++step) {
      const uint64_t inside = step % 4 * sm90::kDescriptorKStep;
      const uint64_t half = step / 4 * (kSwizzleRow * kConsumerRows >> 4);  // 128 columns on
      sm90::wgmma<typename C::ScoreOp>(to, q + half + inside, k + half + inside, step != 0);
    }
    sm90::wgmma_commit();
    scores_at.advance();
  }
  // slice = p v^T, for the columns of slice number `j`
  WLIB_DEVICE void issue_values(int j) {
    const int stage = values_at.stage;
    const uint64_t v = sm90::swizzled_tile_descriptor(s.v + value_tile<C>(stage)) +
                       uint32_t(value_column(stage) >> 4) +
                       uint32_t(j * C::kSliceColumns * kSwizzleRow >> 4);
    sm90::wgmma_fence();
    WLIB_UNROLL
    for (int step = 0; step < kKeys / 32; ++step) {
      sm90::wgmma<typename C::ValueOp>(slice, p[step], v + step * sm90::kDescriptorKStep,
                                       step != 0);
    }
    sm90::wgmma_commit();
  }
  WLIB_DEVICE void add_slice(int j) {
    WLIB_UNROLL
    for (int v = 0; v < C::kSliceRegs; ++v) out[j][v] = factor[v / 2 % 2] * out[j][v] + slice[v];
  }
  // Of the step whose values are multiplied: all its slices but the last, which stays in flight.
  // kBehind: groups committed after the first slice.
  template <int kBehind>
  WLIB_DEVICE void add_first_slices() {
    WLIB_UNROLL
    for (int j = 0; j + 1 < C::kSlices; ++j) {
      if (j == 0)
        sm90::wgmma_wait<kBehind>(slice);
      else
        sm90::wgmma_wait<0>(slice);
      add_slice(j);
      issue_values(j + 1);
    }
  }
  WLIB_DEVICE void add_last_slice() {
    sm90::wgmma_wait<0>(slice);
    add_slice(C::kSlices - 1);
    s.ring.release(values_at);
    values_at.advance();
  }
};

// Rows of the queries -> the consumer's swizzled tile; zeros behind the last row. Where the scale
// of the scores is negative the codes change their signs, so that softmax sees positive ones only.
// The last item's queries are free: its last scores were waited for before a turn, and a turn
// begins for all.
template <class C>
WLIB_DEVICE void load_queries(Consumer<C>& c, const AttentionKernelParams& p,
                              const AttentionItem& item) {
  constexpr int kUnits = C::kHeadDim / 16;
  for (int i = sm90::thread_in_warpgroup(); i < kConsumerRows * kUnits; i += 128) {
    const int row = i / kUnits, column = i % kUnits * 16, of_tile = c.index * kConsumerRows + row;
    Unit codes = {};
    if (of_tile < item.rows) {
      codes = *reinterpret_cast<const Unit*>(p.q + item.query(p, of_tile) * C::kHeadDim + column);
      const uint32_t signs = score_scale(p, item, of_tile) < 0 ? 0x80808080 : 0;
      WLIB_UNROLL
      for (int w = 0; w < 4; ++w) codes.word[w] ^= signs;
    }
    *reinterpret_cast<Unit*>(c.s.q[c.index] + swizzled(row, column, kConsumerRows)) = codes;
  }
  sm90::fence_proxy_async();
  sm90::barrier_sync(kConsumerBarrier + c.index, 128);
}

// Which keys of a step every row of the tile sees: then no mask is needed.
struct Unmasked {
  int begin, end;
  WLIB_DEVICE Unmasked(const AttentionKernelParams& p, const AttentionItem& item) {
    begin = int(item.range(p, item.rows / item.group - 1).begin);
    end = int(item.range(p, 0).end);
  }
  WLIB_DEVICE bool covers(const KeyTile& tile) const {
    return tile.count == kKeys && tile.first >= begin && tile.first + kKeys <= end;
  }
};

// The softmax of step `index`, while the scores of the next one and the values of the last one are
// multiplied.
template <bool kFirst, bool kLast, class C>
WLIB_DEVICE void attend(Consumer<C>& c, const AttentionKernelParams& p, const AttentionItem& item,
                        const Unmasked& unmasked, int index, RowPair& rows) {
  constexpr bool kAhead = C::kAhead && !kLast;
  c.begin_turn();
  if constexpr (!kFirst) c.issue_values(0);
  if constexpr (kAhead) c.issue_scores(c.next);
  c.end_turn();
  const KeyTile tile = item.tile(index);
  const typename C::Scales& scales = c.s.scales[c.softmax_at.stage];
  StepRows step;
  score(p, scales, tile, !unmasked.covers(tile), rows, c.scores, step);
  if constexpr (!kFirst) c.template add_first_slices<kAhead ? 1 : 0>();
  exponentiate(scales, rows, c.scores, step);
  scale_values(scales, c.scores);
  c.softmax_at.advance();
  if constexpr (!kFirst) c.add_last_slice();
  if constexpr (kAhead) sm90::wgmma_wait<0>(c.next);
  sm90::wgmma_hold(c.scores);
  make_fragments(c.scores, c.p);
  if constexpr (kAhead) {
    WLIB_UNROLL
    for (int v = 0; v < C::kScores; ++v) c.scores[v] = c.next[v];
  } else if constexpr (!C::kAhead) {
    if (index + 1 < item.end_tile) {
      c.issue_scores(c.scores);
      sm90::wgmma_wait<0>(c.scores);
    }
  }
  c.factor[0] = step.factor[0];
  c.factor[1] = step.factor[1];
}

template <class C>
WLIB_DEVICE void store_item(const Consumer<C>& c, const AttentionKernelParams& p,
                            const AttentionItem& item, const RowPair& rows) {
  const bool parts = p.plan.splits > 1;
  void* out = parts ? p.part_out + item.split * p.tokens * p.heads * C::kHeadDim : p.out;
  float* lse = parts ? p.part_lse + item.split * p.tokens * p.heads : p.lse;
  const FloatType type = parts ? FloatType::kFloat32 : p.out_type;
  WLIB_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = c.first_row() + 8 * r, head = item.kv_head * item.group + row % item.group;
    const RowEnd end = finish_row(p, rows, r, head);
    if (row >= item.rows) continue;
    const int64_t query = item.query(p, row);
    const int column = sm90::accumulator_column(sm90::thread_in_warpgroup(), 0);
    WLIB_UNROLL
    for (int j = 0; j < C::kSlices; ++j) {
      WLIB_UNROLL
      for (int v = 2 * r; v < C::kSliceRegs; v += 4) {
        store_two(out, type, query * C::kHeadDim + j * C::kSliceColumns + v / 4 * 8 + column,
                  c.out[j][v] * end.factor, c.out[j][v + 1] * end.factor);
      }
    }
    if (column == 0) lse[head * p.tokens + item.first_token + row / item.group] = end.lse;
  }
}

template <class C>
WLIB_DEVICE void attend_item(Consumer<C>& c, const AttentionKernelParams& p,
                             const AttentionItem& item) {
  load_queries(c, p, item);
  RowPair rows(p, item, c.first_row());
  if (p.key_mean) multiply_mean<C>(p, item, c.first_row(), rows);
  WLIB_UNROLL
  for (int i = 0; i < C::kSlices * C::kSliceRegs; ++i)
    c.out[i / C::kSliceRegs][i % C::kSliceRegs] = 0;
  if (item.first_tile < item.end_tile) {
    const Unmasked unmasked(p, item);
    const int last = item.end_tile - 1;
    c.issue_scores(c.scores);
    sm90::wgmma_wait<0>(c.scores);
    if constexpr (!C::kAhead) {  // fewer copies of the code, fewer registers
      attend<true, false>(c, p, item, unmasked, item.first_tile, rows);
      for (int i = item.first_tile + 1; i <= last; ++i)
        attend<false, false>(c, p, item, unmasked, i, rows);
    } else if (item.first_tile == last) {
      attend<true, true>(c, p, item, unmasked, last, rows);
    } else {
      attend<true, false>(c, p, item, unmasked, item.first_tile, rows);
      for (int i = item.first_tile + 1; i < last; ++i)
        attend<false, false>(c, p, item, unmasked, i, rows);
      attend<false, true>(c, p, item, unmasked, last, rows);
    }
    c.issue_values(0);
    c.template add_first_slices<0>();
    c.add_last_slice();
  }
  store_item(c, p, item, rows);
}

template <class C>
WLIB_DEVICE void consume(AttentionSmem<C>& s, const AttentionKernelParams& p, int index) {
  Consumer<C> c(s, index);
  if (index == 1) c.end_turn();  // consumer 0 begins
  for (int i = sm90::block_index_x(); i < p.plan.items; i += sm90::grid_size_x()) {
    const AttentionItem item(p, i);
    if (item.rows > 0) attend_item(c, p, item);
  }
  if (index == 0) c.begin_turn();  // takes what consumer 1 passed on last
}

template <class C>
WLIB_KERNEL(C::kThreads)
attention_kernel(WLIB_GRID_CONSTANT AttentionKernelParams p) {
  auto& s = sm90::dynamic_smem<AttentionSmem<C>>();
  if (sm90::thread_index() == 0) {
    if constexpr (!C::kTokenRows) {
      sm90::debug_name(s.raw_full, sizeof s.raw_full, "raw_full");
      for (uint64_t& full : s.raw_full) sm90::mbarrier_init(full, 1);
    }
    s.ring.init(/*readers=*/kConsumers * 4);
  }
  sm90::block_sync();
  const int group = sm90::warpgroup_index();
  if (group == 0) {
    sm90::release_registers<C::kProducerRegs>();
    if constexpr (C::kTokenRows)
      produce_rows<C>(s, p);
    else
      produce_blocks<C>(s, p);
  } else {
    sm90::acquire_registers<C::kConsumerRegs>();
    consume<C>(s, p, group - 1);
  }
}

}  // namespace wlib::prefill

// y[m] = (base + sum_s c[m, s] atoms[s]) x[m] + bias, without the weight (sm_90a; also runs in the
// simulator).
//
// A persistent CTA takes one item after the other (linear_plan.h). A producer thread streams, for
// every 64 columns, the activations and then each atom's tile of 128 rows, through a ring each. Two
// consumer warpgroups own 64 of the rows: a tile's products start from zero in the tensor cores and
// are added to the sums in FP32, times the coefficient of their token. So coefficients per token
// cost nothing more, and neither they nor the sums are rounded. The base is an atom with
// coefficient 1. Every item stores its partial sums; a second kernel adds them up in order.
#pragma once

#include <cmath>

#include "atoms/sm90_linear_params.h"
#include "atoms/sm90_runs.h"
#include "wlib/sm90/copy.h"
#include "wlib/sm90/ring.h"
#include "wlib/sm90/sync.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::atoms {

constexpr int kLinearConsumers = 2, kConsumerRows = kLinearRows / kLinearConsumers;
constexpr int kConsumerThreads = kLinearConsumers * sm90::kWarpgroupThreads;
constexpr int kLinearThreads = kConsumerThreads + sm90::kWarpThreads;  // the producer's warp
constexpr int kAtomStages = 8, kTokenStages = 2;
constexpr int kSwizzledRow = 128;  // bytes
constexpr int kAtomBytes = kLinearRows * kSwizzledRow, kTokenBytes = kLinearTokens * kSwizzledRow;
constexpr int kConsumerBarrier = 1;  // among the consumers

struct LinearSmem {
  alignas(1024) uint8_t atoms[kAtomStages][kAtomBytes];
  alignas(1024) uint8_t x[kTokenStages][kTokenBytes];
  alignas(16) float coef[kLinearAtoms][kLinearTokens];
  sm90::Ring<kAtomStages> atom_ring;
  sm90::Ring<kTokenStages> token_ring;
};
static_assert(sizeof(LinearSmem) <= 227 * 1024);

struct LinearItem {
  int part, first_token, first_row;
  int first_chunk, end_chunk, first_atom, end_atom;

  // Blocks of tokens are neighbours: they read the same atoms.
  WLIB_DEVICE LinearItem(const LinearKernelParams& p, int64_t index) {
    const LinearPlan& plan = p.plan;
    first_token = int(index % plan.token_blocks) * kLinearTokens;
    index /= plan.token_blocks;
    first_row = int(index % plan.row_blocks) * kLinearRows;
    part = int(index / plan.row_blocks);
    const int share = part % plan.shares;
    first_chunk = int(int64_t(plan.chunks) * share / plan.shares);
    end_chunk = int(int64_t(plan.chunks) * (share + 1) / plan.shares);
    first_atom = part / plan.shares * kLinearAtoms;
    const int left = p.summands - first_atom;
    end_atom = first_atom + (left < kLinearAtoms ? left : kLinearAtoms);
  }
};

WLIB_DEVICE void produce_linear(LinearSmem& s, const LinearKernelParams& p) {
  sm90::RingCursor<kAtomStages> at;
  sm90::RingCursor<kTokenStages> token_at;
  for (int64_t i = sm90::block_index_x(); i < p.plan.items(); i += sm90::grid_size_x()) {
    const LinearItem item(p, i);
    for (int chunk = item.first_chunk; chunk < item.end_chunk; ++chunk) {
      const int column = chunk * kLinearColumns;
      s.token_ring.wait_empty(token_at);
      sm90::tensor_load_2d(s.x[token_at.stage], p.x, column, item.first_token,
                           s.token_ring.expect(token_at, kTokenBytes));
      token_at.advance();
      for (int a = item.first_atom; a < item.end_atom; ++a) {
        s.atom_ring.wait_empty(at);
        uint64_t& full = s.atom_ring.expect(at, kAtomBytes);
        // Rows beyond an atom's last are those of the next one; their sums are not stored.
        if (a < p.num_atoms)
          sm90::tensor_load_2d(s.atoms[at.stage], p.atoms, column, a * p.rows + item.first_row,
                               full);
        else
          sm90::tensor_load_2d(s.atoms[at.stage], p.base, column, item.first_row, full);
        at.advance();
      }
    }
  }
}

// The item's coefficients, zero for tokens that there are not.
WLIB_DEVICE void load_coefficients(LinearSmem& s, const LinearKernelParams& p,
                                   const LinearItem& item) {
  sm90::barrier_sync(kConsumerBarrier, kConsumerThreads);  // the last item's reads
  const int count = (item.end_atom - item.first_atom) * kLinearTokens;
  for (int i = sm90::thread_index(); i < count; i += kConsumerThreads) {
    const int token = item.first_token + i % kLinearTokens;
    const int atom = item.first_atom + i / kLinearTokens;
    float value = 0;
    if (token < p.tokens)
      value = atom < p.num_atoms ? p.coef[int64_t(token) * p.coef_stride + atom] : 1.0f;
    s.coef[i / kLinearTokens][i % kLinearTokens] = value;
  }
  sm90::barrier_sync(kConsumerBarrier, kConsumerThreads);
}

template <FloatType kType>
struct LinearMma;
template <>
struct LinearMma<FloatType::kBFloat16> : sm90::WgmmaBF16<kLinearTokens> {};
template <>
struct LinearMma<FloatType::kFloat16> : sm90::WgmmaF16<kLinearTokens> {};
constexpr int kLinearSums = kConsumerRows * kLinearTokens / sm90::kWarpgroupThreads;

// sums += c * (64 rows and 64 columns of an atom, times the activations)
template <FloatType kType>
WLIB_DEVICE void add_atom(const uint8_t* atom, const uint8_t* x, const float* coef,
                          float (&sums)[kLinearSums]) {
  using Mma = typename LinearMma<kType>::Ss;
  float products[kLinearSums], c[kLinearSums / 2];
  const uint64_t a = sm90::swizzled_tile_descriptor(atom), b = sm90::swizzled_tile_descriptor(x);
  sm90::wgmma_fence();
  WLIB_UNROLL
  for (int step = 0; step < kSwizzledRow / 32; ++step) {
    const uint64_t inside = step * sm90::kDescriptorKStep;
    sm90::wgmma<Mma>(products, a + inside, b + inside, step != 0);
  }
  sm90::wgmma_commit();
  const int t = sm90::thread_in_warpgroup();
  WLIB_UNROLL
  for (int i = 0; i < kLinearSums / 4; ++i) {  // while the tensor cores work
    const auto two = *reinterpret_cast<const float2*>(coef + sm90::accumulator_column(t, 4 * i));
    c[2 * i] = two.x;
    c[2 * i + 1] = two.y;
  }
  sm90::wgmma_wait<0>(products);
  WLIB_UNROLL
  for (int v = 0; v < kLinearSums; ++v) sums[v] = fmaf(c[v / 4 * 2 + v % 2], products[v], sums[v]);
}

WLIB_DEVICE void store_partials(const LinearKernelParams& p, const LinearItem& item, int consumer,
                                const float (&sums)[kLinearSums]) {
  const int t = sm90::thread_in_warpgroup();
  WLIB_UNROLL
  for (int v = 0; v < kLinearSums; ++v) {
    const int row = item.first_row + consumer * kConsumerRows + sm90::accumulator_row(t, v);
    const int token = item.first_token + sm90::accumulator_column(t, v);
    if (row >= p.rows || token >= p.tokens) continue;
    p.partials[(int64_t(item.part) * p.tokens + token) * p.rows + row] = sums[v];
  }
}

template <FloatType kType>
WLIB_DEVICE void consume_linear(LinearSmem& s, const LinearKernelParams& p, int consumer) {
  sm90::RingCursor<kAtomStages> at;
  sm90::RingCursor<kTokenStages> token_at;
  for (int64_t i = sm90::block_index_x(); i < p.plan.items(); i += sm90::grid_size_x()) {
    const LinearItem item(p, i);
    load_coefficients(s, p, item);
    float sums[kLinearSums] = {};
    for (int chunk = item.first_chunk; chunk < item.end_chunk; ++chunk) {
      s.token_ring.wait_full(token_at);
      for (int a = 0; a < item.end_atom - item.first_atom; ++a) {
        s.atom_ring.wait_full(at);
        add_atom<kType>(s.atoms[at.stage] + consumer * kConsumerRows * kSwizzledRow,
                        s.x[token_at.stage], s.coef[a], sums);
        s.atom_ring.release(at);
        at.advance();
      }
      s.token_ring.release(token_at);
      token_at.advance();
    }
    store_partials(p, item, consumer, sums);
  }
}

template <FloatType kType>
WLIB_KERNEL(kLinearThreads)
linear_kernel(WLIB_GRID_CONSTANT LinearKernelParams p) {
  auto& s = sm90::dynamic_smem<LinearSmem>();
  if (sm90::thread_index() == 0) {
    s.atom_ring.init(/*readers=*/kConsumerThreads / sm90::kWarpThreads);
    s.token_ring.init(/*readers=*/kConsumerThreads / sm90::kWarpThreads);
  }
  sm90::block_sync();
  const int group = sm90::warpgroup_index();
  if (group == kLinearConsumers) {
    if (sm90::elect()) produce_linear(s, p);
    sm90::warp_sync();
  } else {
    consume_linear<kType>(s, p, group);
  }
}

constexpr int kLinearSumThreads = 256;

// A thread adds up the parts of an output, in order.
WLIB_KERNEL(kLinearSumThreads)
linear_sum_kernel(WLIB_GRID_CONSTANT LinearSumParams p) {
  for (int64_t i = int64_t(sm90::block_index_x()) * kLinearSumThreads + sm90::thread_index();
       i < p.outputs; i += int64_t(sm90::grid_size_x()) * kLinearSumThreads) {
    float sum = p.partials[i];
    for (int part = 1; part < p.parts; ++part) sum += p.partials[part * p.outputs + i];
    if (p.bias) sum += load_float(p.bias, p.type, i % p.rows);
    store_float(p.out, p.type, i, sum);
  }
}

}  // namespace wlib::atoms

// y[m] = (base + sum_s c[m, s] atoms[s]) x[m] + bias, without the weight (sm_90a; also runs in the
// simulator).
//
// A persistent CTA takes one item after the other (linear_plan.h). A producer thread streams, for
// every 128 bytes of the atoms' rows, the activations and then each atom's tile of 128 rows,
// through a ring each. Two consumer warpgroups own 64 of the rows: a tile's products start from
// zero in the tensor cores and are added to the sums in FP32, times the coefficient of their token.
// So coefficients per token cost nothing more, and neither they nor the sums are rounded. FP8 atoms
// become A fragments of the activations' type on the way. The base is an atom with coefficient 1.
// Every item stores its partial sums; a second kernel adds them up in order.
#pragma once

#include <cmath>
#include <type_traits>

#include "atoms/sm90_linear_params.h"
#include "atoms/sm90_runs.h"
#include "wlib/sm90/convert.h"
#include "wlib/sm90/copy.h"
#include "wlib/sm90/ring.h"
#include "wlib/sm90/sync.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::atoms {

constexpr int kLinearConsumers = 2, kConsumerRows = kLinearRows / kLinearConsumers;
constexpr int kConsumerThreads = kLinearConsumers * sm90::kWarpgroupThreads;
constexpr int kLinearThreads = kConsumerThreads + sm90::kWarpThreads;  // the producer's warp
constexpr int kAtomStages = 8, kTokenStages = 2;
constexpr int kAtomBytes = kLinearRows * kTileBytes, kTokenBytes = kLinearTokens * kTileBytes;
constexpr int kLinearSums = kConsumerRows * kLinearTokens / sm90::kWarpgroupThreads;
constexpr int kConsumerBarrier = 1;  // among the consumers

template <FloatType kType_, bool kFp8_>
struct LinearConfig {
  static constexpr FloatType kType = kType_;   // of activations and base
  static constexpr bool kFp8 = kFp8_;          // atoms; else they are of kType
  static constexpr int kTiles = kFp8 ? 2 : 1;  // of 64 columns of 16 bits, per step
  static constexpr int kColumns = kTiles * kTileColumns;
  using Mma = std::conditional_t<kType == FloatType::kBFloat16, sm90::WgmmaBF16<kLinearTokens>,
                                 sm90::WgmmaF16<kLinearTokens>>;
};

template <class C>
struct LinearSmem {
  alignas(1024) uint8_t atoms[kAtomStages][kAtomBytes];
  alignas(1024) uint8_t x[kTokenStages][C::kTiles][kTokenBytes];
  alignas(16) float coef[kLinearAtoms][kLinearTokens];
  sm90::Ring<kAtomStages> atom_ring;
  sm90::Ring<kTokenStages> token_ring;
};

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

template <class C>
WLIB_DEVICE void produce_linear(LinearSmem<C>& s, const LinearKernelParams& p) {
  sm90::RingCursor<kAtomStages> at;
  sm90::RingCursor<kTokenStages> token_at;
  for (int64_t i = sm90::block_index_x(); i < p.plan.items(); i += sm90::grid_size_x()) {
    const LinearItem item(p, i);
    for (int chunk = item.first_chunk; chunk < item.end_chunk; ++chunk) {
      const int column = chunk * C::kColumns;
      s.token_ring.wait_empty(token_at);
      uint64_t& tokens_full = s.token_ring.expect(token_at, C::kTiles * kTokenBytes);
      WLIB_UNROLL
      for (int tile = 0; tile < C::kTiles; ++tile)
        sm90::tensor_load_2d(s.x[token_at.stage][tile], p.x, column + tile * kTileColumns,
                             item.first_token, tokens_full);
      token_at.advance();
      WLIB_NO_UNROLL
      for (int a = item.first_atom; a < item.end_atom; ++a) {
        s.atom_ring.wait_empty(at);
        uint64_t& full = s.atom_ring.expect(at, kAtomBytes);
        // Rows beyond an atom's last are those of the next one; their sums are not stored.
        if (a < p.num_atoms)
          sm90::tensor_load_2d(s.atoms[at.stage], p.atoms, column, a * p.rows + item.first_row,
                               full);
        else
          sm90::tensor_load_2d(s.atoms[at.stage], p.base, column + (a - p.num_atoms) * kTileColumns,
                               item.first_row, full);
        at.advance();
      }
    }
  }
}

// The item's coefficients, zero for tokens that there are not.
template <class C>
WLIB_DEVICE void load_coefficients(LinearSmem<C>& s, const LinearKernelParams& p,
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

// sums += c * products, once the products are there.
WLIB_DEVICE void add_products(const float* coef, float (&products)[kLinearSums],
                              float (&sums)[kLinearSums]) {
  const int t = sm90::thread_in_warpgroup();
  float c[kLinearSums / 2];
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

// A tile of 64 rows x 64 columns of 16 bits.
template <class C>
WLIB_DEVICE void add_tile(const uint8_t* tile, const uint8_t* x, const float* coef,
                          float (&sums)[kLinearSums]) {
  float products[kLinearSums];
  const uint64_t a = sm90::swizzled_tile_descriptor(tile), b = sm90::swizzled_tile_descriptor(x);
  sm90::wgmma_fence();
  WLIB_UNROLL
  for (int step = 0; step < kTileBytes / 32; ++step) {
    const uint64_t inside = step * sm90::kDescriptorKStep;
    sm90::wgmma<typename C::Mma::Ss>(products, a + inside, b + inside, step != 0);
  }
  sm90::wgmma_commit();
  add_products(coef, products, sums);
}

// Two neighbouring codes as a register of an A fragment. Exact: both types hold E4M3.
template <FloatType kType>
WLIB_DEVICE uint32_t fragment(uint16_t codes) {
  const float2 v = sm90::e4m3x2_to_float2(codes);
  return from_float(kType, v.x) | from_float(kType, v.y) << 16;
}

// A tile of 64 rows x 128 columns of FP8; x [2][64 tokens x 64 columns].
template <class C>
WLIB_DEVICE void add_fp8_tile(const uint8_t* tile, const uint8_t (&x)[C::kTiles][kTokenBytes],
                              const float* coef, float (&sums)[kLinearSums]) {
  constexpr int kSteps = kTileBytes / 16;
  const int t = sm90::thread_in_warpgroup();
  const int row = sm90::accumulator_row(t, 0);
  uint32_t a[kSteps][4];
  WLIB_UNROLL
  for (int i = 0; i < kSteps * 4; ++i) {
    const int column = i / 4 * 16 + i / 2 % 2 * 8 + t % 4 * 2;
    const int at = (row + i % 2 * 8) * kTileBytes + (column ^ row % 8 * 16);
    a[i / 4][i % 4] = fragment<C::kType>(*reinterpret_cast<const uint16_t*>(tile + at));
  }
  float products[kLinearSums];
  sm90::wgmma_fence();
  WLIB_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t b = sm90::swizzled_tile_descriptor(x[step / 4]);
    sm90::wgmma<typename C::Mma::Rs>(products, a[step], b + step % 4 * sm90::kDescriptorKStep,
                                     step != 0);
  }
  sm90::wgmma_commit();
  add_products(coef, products, sums);
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

template <class C>
WLIB_DEVICE void consume_linear(LinearSmem<C>& s, const LinearKernelParams& p, int consumer) {
  sm90::RingCursor<kAtomStages> at;
  sm90::RingCursor<kTokenStages> token_at;
  for (int64_t i = sm90::block_index_x(); i < p.plan.items(); i += sm90::grid_size_x()) {
    const LinearItem item(p, i);
    load_coefficients(s, p, item);
    float sums[kLinearSums] = {};
    for (int chunk = item.first_chunk; chunk < item.end_chunk; ++chunk) {
      s.token_ring.wait_full(token_at);
      const auto& x = s.x[token_at.stage];
      for (int a = item.first_atom; a < item.end_atom; ++a) {
        s.atom_ring.wait_full(at);
        const uint8_t* tile = s.atoms[at.stage] + consumer * kConsumerRows * kTileBytes;
        const float* coef = s.coef[a - item.first_atom];
        if constexpr (!C::kFp8)
          add_tile<C>(tile, x[0], coef, sums);
        else if (a < p.num_atoms)
          add_fp8_tile<C>(tile, x, coef, sums);
        else
          add_tile<C>(tile, x[a - p.num_atoms], coef, sums);
        s.atom_ring.release(at);
        at.advance();
      }
      s.token_ring.release(token_at);
      token_at.advance();
    }
    store_partials(p, item, consumer, sums);
  }
}

template <class C>
WLIB_KERNEL(kLinearThreads)
linear_kernel(WLIB_GRID_CONSTANT LinearKernelParams p) {
  static_assert(sizeof(LinearSmem<C>) <= 227 * 1024);
  auto& s = sm90::dynamic_smem<LinearSmem<C>>();
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
    consume_linear(s, p, group);
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

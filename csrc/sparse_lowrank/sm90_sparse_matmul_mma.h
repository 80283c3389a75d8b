// 16-bit activations times a sparse matrix in tiles on the tensor cores (sm_90a; also runs in the
// simulator).
//
// A persistent CTA makes 128 tokens x 256 outputs. Its producer warpgroup has the matrix's tiles,
// two of them side by side and 128 columns at a time, in shared memory as a dense operand that is
// zero but for the values: it takes the values of the step before out of a stage and puts the new
// ones in. Activations arrive by tensor copies. Two consumer warpgroups multiply 64 tokens each.
#pragma once

#include "sparse_lowrank/sm90_sparse_params.h"
#include "wlib/sm90/sync.h"

namespace wlib::sparse_lowrank {

constexpr int kProductStages = 2;
constexpr int kProductTiles = kMmaColumns / kSparseTile;  // of outputs
constexpr int kProductBoxes = kSparseTile / kBoxColumns;  // of a step
constexpr int kWeightBoxBytes = kMmaColumns * kBoxRowBytes;
constexpr int kFetchedEntries = 5;  // of a tile, fetched ahead: 640 values, density 0.039
constexpr int kRoundEntries = kFetchedEntries * sm90::kWarpgroupThreads;

struct ProductSmem {
  alignas(1024) TokenBoxes<kProductTokens, kProductBoxes> x[kProductStages];
  alignas(1024) uint8_t w[kProductStages][kProductBoxes][kWeightBoxBytes];
  sm90::Ring<kProductStages> ring;
};

struct ProductItem {
  int64_t token;
  int tile, output;  // the first ones

  // Neighbours have the same tokens.
  WLIB_DEVICE ProductItem(const SparseProductParams& p, int64_t index) {
    const int blocks = (p.outputs() + kMmaColumns - 1) / kMmaColumns;
    token = index / blocks * kProductTokens;
    tile = int(index % blocks) * kProductTiles;
    output = tile * kSparseTile;
  }
};

// All steps of all items of this CTA, one after the other, and the values of a step's tiles.
struct ProductWalk {
  const SparseProductParams& p;
  int64_t item;
  int step = 0;
  int64_t begin[kProductTiles];
  int count[kProductTiles];

  WLIB_DEVICE explicit ProductWalk(const SparseProductParams& params)
      : p(params), item(sm90::block_index_x()) {
    find();
  }
  WLIB_DEVICE bool done() const { return item >= p.items(); }
  WLIB_DEVICE void advance() {
    if (++step == p.steps()) {
      step = 0;
      item += sm90::grid_size_x();
    }
    find();
  }
  WLIB_DEVICE void find() {
    if (done()) return;
    const TileSparse& m = p.matrix;
    const int first = ProductItem(p, item).tile;
    const int tiles = p.transposed ? m.column_tiles() : m.row_tiles();
    WLIB_UNROLL
    for (int i = 0; i < kProductTiles; ++i) {
      begin[i] = 0;
      count[i] = 0;
      if (first + i >= tiles) continue;
      const int64_t tile = p.transposed ? int64_t(step) * m.column_tiles() + first + i
                                        : int64_t(first + i) * m.column_tiles() + step;
      begin[i] = m.offsets[tile];
      count[i] = int(m.offsets[tile + 1] - begin[i]);
    }
  }
};

// Some of a step's values on their way through a thread's registers, above their positions.
template <FloatType kType>
struct Entries {
  uint32_t entry[kProductTiles][kFetchedEntries];

  // Those from `first` on of each tile.
  WLIB_DEVICE void load(const ProductWalk& walk, int first) {
    load_positions(walk, first);
    switch (walk.p.matrix.value_type) {
      case FloatType::kFloat32: return load_values<FloatType::kFloat32>(walk, first);
      case FloatType::kBFloat16: return load_values<FloatType::kBFloat16>(walk, first);
      default: return load_values<FloatType::kFloat16>(walk, first);
    }
  }
  // Zeros for values, to take those of a step out.
  WLIB_DEVICE void load_positions(const ProductWalk& walk, int first) {
    WLIB_UNROLL
    for (int i = 0; i < kProductTiles * kFetchedEntries; ++i) {
      const int tile = i / kFetchedEntries, index = index_of(i, first);
      uint32_t& to = entry[tile][i % kFetchedEntries];
      to = 0;
      if (index < walk.count[tile])
        to = uint16_t(walk.p.matrix.positions[walk.begin[tile] + index]);
    }
  }
  WLIB_DEVICE void store(uint8_t (&w)[kProductBoxes][kWeightBoxBytes], const ProductWalk& walk,
                         int first) const {
    WLIB_UNROLL
    for (int i = 0; i < kProductTiles * kFetchedEntries; ++i) {
      const int tile = i / kFetchedEntries;
      if (index_of(i, first) >= walk.count[tile]) continue;
      const uint32_t bits = entry[tile][i % kFetchedEntries];
      const auto position = int16_t(bits);
      const int row = walk.p.transposed ? column_of(position) : row_of(position);
      const int column = walk.p.transposed ? row_of(position) : column_of(position);
      const int byte = swizzled_byte(tile * kSparseTile + row, column % kBoxColumns * 2);
      *reinterpret_cast<uint16_t*>(w[column / kBoxColumns] + byte) = uint16_t(bits >> 16);
    }
  }

 private:
  template <FloatType kFrom>
  WLIB_DEVICE void load_values(const ProductWalk& walk, int first) {
    WLIB_UNROLL
    for (int i = 0; i < kProductTiles * kFetchedEntries; ++i) {
      const int tile = i / kFetchedEntries, index = index_of(i, first);
      if (index >= walk.count[tile]) continue;
      uint32_t bits = sm90::load_bits(walk.p.matrix.values, kFrom, walk.begin[tile] + index);
      if constexpr (kFrom != kType) bits = sm90::from_float(kType, sm90::to_float(kFrom, bits));
      entry[tile][i % kFetchedEntries] |= bits << 16;
    }
  }
  WLIB_DEVICE static int index_of(int i, int first) {
    return first + i % kFetchedEntries * sm90::kWarpgroupThreads + sm90::thread_in_warpgroup();
  }
};

// Values beyond those that were fetched ahead.
template <FloatType kType>
WLIB_DEVICE void store_rest(uint8_t (&w)[kProductBoxes][kWeightBoxBytes], const ProductWalk& walk,
                            bool with_values) {
  const int count = walk.count[0] > walk.count[1] ? walk.count[0] : walk.count[1];
  WLIB_NO_UNROLL
  for (int first = kRoundEntries; first < count; first += kRoundEntries) {
    Entries<kType> entries;
    if (with_values)
      entries.load(walk, first);
    else
      entries.load_positions(walk, first);
    entries.store(w, walk, first);
  }
}

template <FloatType kType>
WLIB_DEVICE void produce_product(ProductSmem& s, const SparseProductParams& p) {
  using Boxes = TokenBoxes<kProductTokens, kProductBoxes>;
  sm90::RingCursor<kProductStages> at;
  ProductWalk old(p);  // whose values are still in the stage
  int filled = 0;
  for (ProductWalk walk(p); !walk.done(); walk.advance(), at.advance()) {
    Entries<kType> entries, taken;
    entries.load(walk, 0);
    if (filled == kProductStages) taken.load_positions(old, 0);
    s.ring.wait_empty(at);
    uint64_t& full = s.ring.full[at.stage];
    if (sm90::thread_in_warpgroup() == 0) s.ring.expect(at, Boxes::copied(p.x));
    s.x[at.stage].load(p.x, ProductItem(p, walk.item).token, walk.step * kSparseTile, full);
    if (filled == kProductStages) {
      taken.store(s.w[at.stage], old, 0);
      store_rest<kType>(s.w[at.stage], old, false);
      old.advance();
      sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);  // others' values come there
    } else {
      ++filled;
    }
    entries.store(s.w[at.stage], walk, 0);
    store_rest<kType>(s.w[at.stage], walk, true);
    sm90::fence_proxy_async();  // what this thread wrote is for wgmma
    s.ring.hand_over(at);
  }
}

// The first `count` of two neighbouring 16-bit elements, in one word if kWords.
template <bool kWords>
WLIB_DEVICE uint32_t load_two(const void* data, int64_t at, int count) {
  const auto* from = static_cast<const uint16_t*>(data) + at;
  if constexpr (kWords) return count > 0 ? *reinterpret_cast<const uint32_t*>(from) : 0;
  return (count > 0 ? from[0] : 0) | (count > 1 ? uint32_t(from[1]) << 16 : 0);
}
template <bool kWords>
WLIB_DEVICE void store_two(void* data, int64_t at, int count, uint32_t bits) {
  auto* to = static_cast<uint16_t*>(data) + at;
  if constexpr (kWords) {
    if (count > 0) *reinterpret_cast<uint32_t*>(to) = bits;
  } else {
    if (count > 0) to[0] = uint16_t(bits);
    if (count > 1) to[1] = uint16_t(bits >> 16);
  }
}

// Adds bias and base to the sums of 64 tokens x 256 outputs, rounds and stores them.
template <FloatType kType, bool kWords>
WLIB_DEVICE void store_product(const SparseProductParams& p, int64_t first_token, int first_output,
                               const MmaSums& sums) {
  constexpr int kGroup = 8;  // pairs whose loads are on their way together
  const int t = sm90::thread_in_warpgroup(), outputs = p.outputs();
  WLIB_UNROLL
  for (int group = 0; group < kMmaColumns / 4; group += kGroup) {
    const int r = group / (kMmaColumns / 8);
    const int64_t token = first_token + sm90::accumulator_row(t, 2 * r);
    if (token >= p.x.tokens) continue;
    const auto v_of = [&](int i) { return (group + i) % (kMmaColumns / 8) * 4 + 2 * r; };
    const auto output_of = [&](int i) {
      return first_output + sm90::accumulator_column(t, v_of(i));
    };
    uint32_t bias[kGroup] = {}, base[kGroup] = {};
    if (p.bias) {
      WLIB_UNROLL
      for (int i = 0; i < kGroup; ++i)
        bias[i] = load_two<kWords>(p.bias, output_of(i), outputs - output_of(i));
    }
    if (p.base) {
      WLIB_UNROLL
      for (int i = 0; i < kGroup; ++i)
        base[i] = load_two<kWords>(p.base, token * outputs + output_of(i), outputs - output_of(i));
    }
    WLIB_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const int v = v_of(i);
      const float low = sums[v] + sm90::to_float(kType, bias[i] & 0xffff),
                  high = sums[v + 1] + sm90::to_float(kType, bias[i] >> 16);
      const uint32_t bits = sm90::from_float(kType, low + sm90::to_float(kType, base[i] & 0xffff)) |
                            sm90::from_float(kType, high + sm90::to_float(kType, base[i] >> 16))
                                << 16;
      store_two<kWords>(p.out, token * outputs + output_of(i), outputs - output_of(i), bits);
    }
  }
}

WLIB_DEVICE bool at_word(const void* data) { return reinterpret_cast<uintptr_t>(data) % 4 == 0; }

template <FloatType kType>
WLIB_DEVICE void consume_product(ProductSmem& s, const SparseProductParams& p, int consumer) {
  using Op = typename WideMma<kType>::Ss;
  sm90::RingCursor<kProductStages> at;
  // Then pairs of outputs are whole, and at 4-byte boundaries.
  const bool words = p.outputs() % 2 == 0 && at_word(p.out) && at_word(p.base) && at_word(p.bias);
  for (int64_t index = sm90::block_index_x(); index < p.items(); index += sm90::grid_size_x()) {
    MmaSums sums = {};
    for (int step = 0; step < p.steps(); ++step, at.advance()) {
      s.ring.wait_full(at);
      sm90::wgmma_fence();
      WLIB_UNROLL
      for (int b = 0; b < kProductBoxes; ++b) {
        const uint8_t* tokens = s.x[at.stage].box[b] + consumer * kMmaRows * kBoxRowBytes;
        const uint64_t x = sm90::swizzled_tile_descriptor(tokens);
        const uint64_t w = sm90::swizzled_tile_descriptor(s.w[at.stage][b]);
        WLIB_UNROLL
        for (int k = 0; k < kBoxRowBytes / 32; ++k)
          sm90::wgmma<Op>(sums, x + k * sm90::kDescriptorKStep, w + k * sm90::kDescriptorKStep,
                          true);
      }
      sm90::wgmma_commit();
      sm90::wgmma_wait<0>(sums);
      s.ring.release(at);
    }
    const ProductItem item(p, index);
    const int64_t token = item.token + consumer * kMmaRows;
    if (words)
      store_product<kType, true>(p, token, item.output, sums);
    else
      store_product<kType, false>(p, token, item.output, sums);
  }
}

template <FloatType kType>
WLIB_KERNEL(kMmaThreads)
sparse_matmul_mma_kernel(WLIB_GRID_CONSTANT SparseProductParams p) {
  static_assert(sizeof(ProductSmem) <= 227 * 1024);
  auto& s = sm90::dynamic_smem<ProductSmem>();
  const int thread = sm90::thread_index();
  auto* w = reinterpret_cast<sm90::Quad*>(s.w);
  for (int i = thread; i < int(sizeof s.w / sizeof *w); i += kMmaThreads) w[i] = {};
  sm90::fence_proxy_async();  // zeros are for wgmma
  if (thread == 0) s.ring.init(kMmaReaders, kMmaWriters);
  sm90::block_sync();
  const int group = sm90::warpgroup_index();
  if (group == kMmaConsumers) {
    sm90::release_registers<kMmaProducerRegs>();
    produce_product<kType>(s, p);
  } else {
    sm90::acquire_registers<kMmaConsumerRegs>();
    consume_product<kType>(s, p, group);
  }
}

}  // namespace wlib::sparse_lowrank

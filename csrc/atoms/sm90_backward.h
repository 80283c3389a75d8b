// Both gradients of the sums of shared atoms in one pass, and a step of an optimiser on the atoms.
// A CTA takes a chunk of a row in tiles of 512 elements. It brings the tile of all gradients and
// atoms to shared memory, adds the products of every layer with every atom to its partial sums, and
// makes the gradients of the atoms, which it stores or uses up at once. sm90_finish.h adds the
// chunks' partial sums in order.
#pragma once

#include "atoms/sm90_sums.h"
#include "wlib/params/atoms.h"

namespace wlib::atoms {

using sm90::kRun;

constexpr int kBackwardThreads = 256, kBackwardTile = 512;
constexpr int kQuads = kBackwardTile / 4, kTileRuns = kBackwardTile / kRun;
constexpr int kPairLayers = 8, kPairAtoms = 4;  // whose products a warp adds up at a time
static_assert(kPairLayers * kPairAtoms == sm90::kWarpThreads);
// Chunks of the rows taken together; the same on every device, so that sums are.
constexpr int64_t kChunks = 264;

// Rows in chunks of tiles.
struct ChunkGrid {
  int64_t rows, columns, tiles, tiles_per_chunk, chunks;  // tiles and chunks of a row
  WLIB_HOST_DEVICE ChunkGrid(int64_t rows, int64_t columns)
      : rows(rows), columns(columns), tiles(ceil_of(columns, kBackwardTile)) {
    const int64_t share = rows < kChunks ? kChunks / (rows > 0 ? rows : 1) : 1;
    tiles_per_chunk = tiles > share ? ceil_of(tiles, share) : 1;
    chunks = ceil_of(tiles, tiles_per_chunk);
  }
  WLIB_HOST_DEVICE int64_t items() const { return rows * chunks; }
};

// As ReconstructBackwardParams, for the kernel: where nothing depends on the row, all elements are
// one row.
struct BackwardTask {
  Arrays grads, atoms;
  const float* coef;  // [layers, atoms, coef_rows]
  void* grad_atoms;
  float* partials;  // [items, layers, atoms]
  int64_t coef_rows;
  ChunkGrid grid;
  float scale;
  AtomsUpdate update;
  UpdateFactors<float> factors;

  WLIB_DEVICE Coefficients coefficients(int64_t row) const {  // [atoms, layers]
    return {coef + (coef_rows > 1 ? row : 0), atoms.count, grads.count, coef_rows,
            atoms.count * coef_rows};
  }
};

// Shared memory: the coefficients, then [layers + atoms][tile].
WLIB_HOST_DEVICE constexpr int64_t backward_smem_bytes(int64_t layers, int64_t atoms) {
  return 4 * (ceil_of(atoms, kGroup) * kGroup * layers + (layers + atoms) * int64_t(kBackwardTile));
}

struct BackwardTile {
  int64_t row, column, offset, count;  // of its first element
};

// The arrays that hold array `index` of gradients and atoms; the index becomes that in them.
WLIB_DEVICE const Arrays& array_of(const BackwardTask& p, int64_t& index) {
  if (index < p.grads.count) return p.grads;
  index -= p.grads.count;
  return p.atoms;
}

// Brings a tile of the arrays to shared memory, zero beyond the row.
WLIB_DEVICE void stage_arrays(const Arrays& arrays, const BackwardTile& tile, Four* staged) {
  const int64_t runs = arrays.count * kTileRuns;
  for (int64_t first = sm90::thread_index(); first < runs;
       first += kLoadsInFlight * kBackwardThreads) {
    const void* from[kLoadsInFlight];
    int64_t counts[kLoadsInFlight];
    WLIB_UNROLL
    for (int i = 0; i < kLoadsInFlight; ++i) {
      const int64_t unit = first + i * kBackwardThreads, element = unit % kTileRuns * kRun;
      const bool inside = unit < runs;
      from[i] =
          advance(arrays.at(inside ? unit / kTileRuns : 0), arrays.type, tile.offset + element);
      counts[i] = inside ? tile.count - element : 0;
    }
    float values[kLoadsInFlight][kRun];
    sm90::load_runs(from, arrays.type, counts, values);
    WLIB_UNROLL
    for (int i = 0; i < kLoadsInFlight; ++i) {
      const int64_t unit = first + i * kBackwardThreads;
      if (unit >= runs) break;
      const float* v = values[i];
      staged[unit * 2] = {{v[0], v[1], v[2], v[3]}};
      staged[unit * 2 + 1] = {{v[4], v[5], v[6], v[7]}};
    }
  }
}

// Four neighbouring elements of array `index`, gradients first.
template <bool kResident>
WLIB_DEVICE Four quad_of(const BackwardTask& p, const BackwardTile& tile, const Four* staged,
                         int64_t index, int quad) {
  if constexpr (kResident) return staged[index * kQuads + quad];
  const Arrays& arrays = array_of(p, index);
  Four values;
  sm90::load_quad(arrays.at(index), arrays.type, tile.offset + quad * 4, tile.count - quad * 4,
                  values.value);
  return values;
}

// Sums value i of all lanes into lane i, always in the same order; recursive, so that indices are
// constants.
template <int kHalf = sm90::kWarpThreads / 2>
WLIB_DEVICE float scatter_sums(float (&v)[sm90::kWarpThreads]) {
  const bool upper = sm90::lane_index() & kHalf;
  WLIB_UNROLL
  for (int i = 0; i < kHalf; ++i) {
    const float low = v[i], high = v[i + kHalf];
    v[i] = (upper ? high : low) + sm90::warp_shuffle_xor(upper ? low : high, kHalf);
  }
  if constexpr (kHalf > 1) return scatter_sums<kHalf / 2>(v);
  return v[0];
}

// Adds the products of the tile to the item's partial sums; every pair has a lane of its own, from
// tile to tile the same.
template <bool kResident>
WLIB_DEVICE void add_products(const BackwardTask& p, const BackwardTile& tile, const Four* staged,
                              int64_t item, bool first_tile) {
  const int64_t layers = p.grads.count, atoms = p.atoms.count;
  const int64_t atom_blocks = ceil_of(atoms, kPairAtoms);
  const int64_t blocks = ceil_of(layers, kPairLayers) * atom_blocks;
  const int lane = sm90::lane_index();
  for (int64_t block = sm90::warp_index(); block < blocks;
       block += kBackwardThreads / sm90::kWarpThreads) {
    const int64_t layer = block / atom_blocks * kPairLayers,
                  atom = block % atom_blocks * kPairAtoms;
    float sums[sm90::kWarpThreads] = {};
    for (int quad = lane; quad < kQuads; quad += sm90::kWarpThreads) {
      Four y[kPairAtoms];
      WLIB_UNROLL
      for (int j = 0; j < kPairAtoms; ++j) {
        const int64_t s = atom + j < atoms ? atom + j : atom;  // its sums are left out
        y[j] = quad_of<kResident>(p, tile, staged, layers + s, quad);
      }
      WLIB_UNROLL
      for (int i = 0; i < kPairLayers; ++i) {
        const int64_t l = layer + i < layers ? layer + i : layer;
        const Four x = quad_of<kResident>(p, tile, staged, l, quad);
        WLIB_UNROLL
        for (int j = 0; j < kPairAtoms; ++j) {
          WLIB_UNROLL
          for (int e = 0; e < 4; ++e)
            sums[i * kPairAtoms + j] = fmaf(x.value[e], y[j].value[e], sums[i * kPairAtoms + j]);
        }
      }
    }
    const float sum = scatter_sums(sums);
    const int64_t l = layer + lane / kPairAtoms, s = atom + lane % kPairAtoms;
    if (l >= layers || s >= atoms) continue;
    float* partial = p.partials + (item * layers + l) * atoms + s;
    *partial = first_tile ? sum : *partial + sum;
  }
}

// The four elements of a step: the gradient goes into the atom and its moments.
WLIB_DEVICE void update_elements(const BackwardTask& p, int64_t at, int64_t count, const Four& atom,
                                 const float (&gradient)[4]) {
  const AtomsUpdate& u = p.update;
  const bool two = u.rule == UpdateRule::kAdamW;
  float first[4], second[4] = {}, updated[4];
  sm90::load_quad(u.first, u.first_type, at, count, first);
  if (two) sm90::load_quad(u.second, u.second_type, at, count, second);
  WLIB_UNROLL
  for (int i = 0; i < 4; ++i) {
    UpdateState<float> s = {atom.value[i], first[i], second[i]};
    update_step(u.rule, p.factors, gradient[i], s);
    updated[i] = s.parameter;
    first[i] = s.first;
    second[i] = s.second;
  }
  sm90::store_quad(u.atoms, p.atoms.type, at, count, updated);
  sm90::store_quad(u.first, u.first_type, at, count, first);
  if (two) sm90::store_quad(u.second, u.second_type, at, count, second);
}

// The gradients of the atoms, four neighbouring elements of a group of atoms a thread.
template <bool kResident, bool kUpdate>
WLIB_DEVICE void finish_atoms(const BackwardTask& p, const BackwardTile& tile, const float* coef,
                              const Four* staged) {
  const Coefficients c = p.coefficients(tile.row);
  for (int64_t unit = sm90::thread_index(); unit < c.groups() * kQuads; unit += kBackwardThreads) {
    const int64_t group = unit / kQuads;
    const int quad = int(unit % kQuads);
    const int64_t count = tile.count - quad * 4;
    if (count <= 0) continue;
    float sums[kGroup][4];
    sum_group<kResident>(
        c, coef, group,
        [&](int64_t l, float(&values)[4]) {
          const Four own = quad_of<kResident>(p, tile, staged, l, quad);
          WLIB_UNROLL
          for (int i = 0; i < 4; ++i) values[i] = own.value[i];
        },
        sums);
    WLIB_UNROLL
    for (int k = 0; k < kGroup; ++k) {
      const int64_t s = group * kGroup + k;
      if (s >= c.outputs) continue;
      WLIB_UNROLL
      for (int i = 0; i < 4; ++i) sums[k][i] *= p.scale;
      const int64_t at = s * p.atoms.elements + tile.offset + quad * 4;
      if constexpr (kUpdate) {
        const Four atom = quad_of<kResident>(p, tile, staged, p.grads.count + s, quad);
        update_elements(p, at, count, atom, sums[k]);
      } else {
        sm90::store_quad(p.grad_atoms, p.atoms.type, at, count, sums[k]);
      }
    }
  }
}

template <bool kResident, bool kUpdate>
WLIB_KERNEL_RESIDENT(kBackwardThreads, 2)
backward_kernel(WLIB_GRID_CONSTANT BackwardTask p) {
  float* coef = &sm90::dynamic_smem<float>();
  for (int64_t item = sm90::block_index_x(); item < p.grid.items(); item += sm90::grid_size_x()) {
    const int64_t row = item / p.grid.chunks, chunk = item % p.grid.chunks;
    const Coefficients c = p.coefficients(row);
    auto* staged = reinterpret_cast<Four*>(coef + (kResident ? c.staged_floats() : 0));
    sm90::block_sync();  // the last item's reads
    if constexpr (kResident) stage_coefficients(c, coef, kBackwardThreads);
    const int64_t first = chunk * p.grid.tiles_per_chunk;
    for (int64_t t = first; t < first + p.grid.tiles_per_chunk && t < p.grid.tiles; ++t) {
      const int64_t column = t * kBackwardTile;
      const BackwardTile tile = {row, column, row * p.grid.columns + column,
                                 p.grid.columns - column};
      if constexpr (kResident) {
        sm90::block_sync();  // the last tile's reads
        stage_arrays(p.grads, tile, staged);
        stage_arrays(p.atoms, tile, staged + p.grads.count * kQuads);
        sm90::block_sync();
      }
      add_products<kResident>(p, tile, staged, item, t == first);
      if constexpr (!kResident && kUpdate) sm90::block_sync();  // all have read the atoms
      finish_atoms<kResident, kUpdate>(p, tile, coef, staged);
    }
  }
}

}  // namespace wlib::atoms

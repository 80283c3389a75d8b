// Rotation by itself, and the signs of random rotations.
#pragma once

#include "fp4/sm90_side.h"
#include "wlib/numerics/fp4_rounding.h"

namespace wlib::fp4 {

// Columns are a multiple of 16: a run is inside of y or outside of it.
template <class T>
WLIB_DEVICE void store_values(const HadamardParams& p, Corner corner, FloatTile& tile) {
  constexpr int kCount = Run<T>::kCount, kRuns = kTile / kCount;
  WLIB_UNROLL_TWICE
  for (int i = tile_thread(); i < kTile * kRuns; i += kTileThreads) {
    const int row = i / kRuns, column = i % kRuns * kCount;
    if (corner.row + row >= p.rows || corner.column + column >= p.columns) continue;
    Run<T> run;
    WLIB_UNROLL
    for (int j = 0; j < kCount; ++j) run.value[j] = sm90::from_float<T>(*tile.at(row, column + j));
    T* to = static_cast<T*>(p.y) + (corner.row + row) * p.columns + corner.column + column;
    *reinterpret_cast<Run<T>*>(to) = run;
  }
}

struct HadamardLaunch {
  HadamardParams p;
  cutlass::FastDivmod tiles;  // of a row

  explicit HadamardLaunch(const HadamardParams& p) : p(p), tiles(int(quantize_tiles(p.columns))) {}
  int64_t ctas() const { return quantize_tiles(p.rows) * quantize_tiles(p.columns); }
};

WLIB_KERNEL_RESIDENT(kTileThreads, kTileCtas)
hadamard_kernel(WLIB_GRID_CONSTANT HadamardLaunch l) {
  start();
  auto& s = sm90::dynamic_smem<QuantizeSmem>();
  const HadamardParams& p = l.p;
  const Corner corner = corner_of(sm90::block_index_x(), l.tiles);
  const Source source{p.rows, p.columns, p.x, p.type, p.x_stride, {}};
  switch (p.type) {
    case FloatType::kFloat32: load_values<float>(source, corner, s.floats); break;
    case FloatType::kBFloat16: load_values<__nv_bfloat16>(source, corner, s.floats); break;
    default: load_values<__half>(source, corner, s.floats);
  }
  load_signs(p.signs, p.size, s);
  sm90::block_sync();
  WLIB_NO_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    const Unit unit(round);
    float x[kUnit];
    read_unit(s.floats, unit, false, x);
    if (p.signs && !p.inverse) flip_signs(s.flips[unit.block], x);
    rotate(p.size, x);
    if (p.signs && p.inverse) flip_signs(s.flips[unit.block], x);
    store_floats(s.floats.at(unit.line, unit.block * kUnit), x);  // no other thread reads these
  }
  sm90::block_sync();
  switch (p.type) {
    case FloatType::kFloat32: return store_values<float>(p, corner, s.floats);
    case FloatType::kBFloat16: return store_values<__nv_bfloat16>(p, corner, s.floats);
    default: return store_values<__half>(p, corner, s.floats);
  }
}

constexpr int kSignThreads = 128;

WLIB_KERNEL_RESIDENT(kSignThreads, 1)
signs_kernel(WLIB_GRID_CONSTANT SignsParams p) {
  start();
  const int i = sm90::thread_index();
  if (i < p.size) p.signs[i] = sign_of(p, i);
}

}  // namespace wlib::fp4

// The matmul kernel's operands, tiles and parameters, and how the parameters follow from an op's.
#pragma once

#include <type_traits>

#include "fp4/matmul_workspace.h"
#include "fp4/sm90_codes.h"
#include "fp4/sm90_vote.h"
#include "wlib/sm90/ring.h"
#include "wlib/sm90/tensor_map.h"

namespace wlib::fp4 {

constexpr int kRowBytes = 128;  // of an operand in a stage, as wgmma reads it
constexpr int kConsumers = 2;   // warpgroups
constexpr int kConsumerRows = 64;
constexpr int kTileRows = kConsumers * kConsumerRows;  // of a
constexpr int kPartColumns = 64;                       // rows of b that one wgmma takes

// Byte of a swizzled tile with rows of kBytes (32, 64 or 128).
template <int kBytes>
WLIB_DEVICE constexpr uint32_t swizzled(uint32_t row, uint32_t column) {
  return row * kBytes + (column ^ row / (128 / kBytes) % (kBytes / 16) * 16);
}

template <class T>
struct alignas(kQuad * sizeof(T)) QuadScales {
  T of[kQuad];
};

// What of a stage is fetched, besides rows of b that are ready for wgmma.
template <class Source, int kColumns>
struct FetchedStage {                                                        // packed
  static constexpr int kCodeBytes = kQuad * sizeof(typename Source::Words);  // of a row
  alignas(1024) uint8_t b[kColumns * kCodeBytes];                            // swizzled
  alignas(128) typename Source::Words a[kTileRows][kQuad];
  alignas(128) QuadScales<typename Source::Scale> a_scales[kTileRows], b_scales[kColumns];
};
// Operands that need no decoding: carriers.
template <sm90::Fp8 kA, sm90::Fp8 kB>
struct Carriers {
  using Op = typename sm90::WgmmaFp8<kA, kB>::Rs;
};
template <sm90::Fp8 kA, sm90::Fp8 kB, int kColumns>
struct FetchedStage<Carriers<kA, kB>, kColumns> {
  alignas(1024) uint8_t a[kTileRows * kRowBytes];
};
template <class Source>
constexpr bool kIsPacked = true;
template <sm90::Fp8 kA, sm90::Fp8 kB>
constexpr bool kIsPacked<Carriers<kA, kB>> = false;

// kTileColumns rows of b by kTileRows rows of a.
template <class Source_, int kTileColumns_ = 256, int kStages_ = kIsPacked<Source_> ? 3 : 4>
struct MatmulConfig {
  using Source = Source_;
  using Op = typename Source::Op;
  static constexpr bool kPacked = kIsPacked<Source>;
  static constexpr int kTileColumns = kTileColumns_;
  static constexpr int kStages = kStages_;
  static constexpr int kParts = kTileColumns / kPartColumns;
  static constexpr int kRegs = sm90::kAccumulators<Op>;  // of a part
  static constexpr bool kPromotes = !std::is_same_v<Source, BF16Codes>;
  // Carriers: two CTAs, which have neighbouring rows of a, bring each other halves of b.
  static constexpr int kCtas = kPacked ? 1 : 2;
  static constexpr int kBand = 16 / kCtas;  // row tiles that are worked on side by side
  static constexpr int kReaders = kConsumers * kCtas * 4;  // warps per stage
  static constexpr int kThreads = (kConsumers + 1) * sm90::kWarpgroupThreads;
  static constexpr int kProducerRegs = kPacked ? 56 : 24;
  static constexpr int kConsumerRegs = sm90::consumer_registers(kConsumers, kProducerRegs);
  using Fetched = FetchedStage<Source, kTileColumns>;
};

// Launches that go by whether scales of some row span more than a carrier can.
enum class When : int { kAlways, kIfNarrow, kIfWide };

template <int kWarps>
WLIB_DEVICE bool has_work(When when, const uint8_t* wide, int flags, uint32_t (&votes)[kWarps]) {
  if (when == When::kAlways) return true;
  bool found = false;
  for (int i = sm90::thread_index(); i < flags; i += kWarps * sm90::kWarpThreads)
    found |= wide[i] != 0;
  return any_thread(found, votes) == (when == When::kIfWide);
}

struct MatmulKernelParams {
  // [m, k] and [n, k] of carriers, box rows x 128; or of packed codes, two per byte, box rows x the
  // bytes of a stage. Swizzled but for codes of a; zeros beyond.
  sm90::TensorMap a, b;
  // Of packed operands, arranged by stages: [k_tiles][pitch][4].
  const void *a_scales, *b_scales;
  int a_pitch, b_pitch;
  const float *a_row, *b_row;        // [m], [n], or null
  const float *a_global, *b_global;  // scalars, or null
  float alpha;
  int m, n, k_tiles;
  int row_tiles, column_tiles;  // of y; a cluster's rows count once
  When when;
  const uint8_t* wide;  // [flags]
  int flags;
  void* y;
  FloatType out_type;
};

// One tile of y. Rows vary fastest within a band, so that CTAs side by side share both operands in
// the L2.
struct Tile {
  int row, column;
  template <class C>
  static WLIB_DEVICE Tile at(const MatmulKernelParams& p, int index) {
    const int per_band = C::kBand * p.column_tiles, first = index / per_band * C::kBand;
    const int left = p.row_tiles - first, width = left < C::kBand ? left : C::kBand;
    return {first + index % per_band % width, index % per_band / width};
  }
};

// False if the driver refuses a tensor map.
template <class C>
bool make_matmul_params(const MatmulParams& op, const Workspace& w, When when,
                        MatmulKernelParams* p) {
  *p = {};
  constexpr bool kFolded = std::is_same_v<typename C::Source, FoldedCodes>;
  p->m = int(op.a.rows);
  p->n = int(op.b.rows);
  p->row_tiles = int(ceil_div(op.a.rows, kTileRows * C::kCtas));
  p->column_tiles = int(ceil_div(op.b.rows, C::kTileColumns));
  p->alpha = op.alpha;
  p->a_global = op.a.packed.global_scale;
  p->b_global = op.b.packed.global_scale;
  p->y = op.y;
  p->out_type = op.out_type;
  p->when = when;
  uint64_t row_bytes = uint64_t(op.k);
  uint32_t box_bytes = kRowBytes;
  if constexpr (C::kPacked) {
    row_bytes /= 2;
    box_bytes = sizeof(typename C::Source::Words) * kQuad;
    const void* const scales[2][2] = {{w.bf16[0], w.bf16[1]}, {w.folded[0], w.folded[1]}};
    p->a_scales = scales[kFolded][0];
    p->b_scales = scales[kFolded][1];
    p->a_pitch = int(padded_rows(op.a.rows));
    p->b_pitch = int(padded_rows(op.b.rows));
    p->a_row = kFolded ? w.row_scale[0] : nullptr;
    p->b_row = kFolded ? w.row_scale[1] : nullptr;
    p->wide = w.wide;
    p->flags = int(w.flags);
  } else {
    p->a_row = op.a.row_scale;
    p->b_row = op.b.row_scale;
  }
  p->k_tiles = int(ceil_div(int64_t(row_bytes), box_bytes));
  if (p->k_tiles == 0) return true;  // neither is read
  const auto map = [&](sm90::TensorMap* to, const Operand& o, int rows, bool swizzle) {
    const uint8_t* values = C::kPacked ? o.packed.codes : o.carrier;
    return sm90::make_tensor_map(to, {values, uint64_t(o.rows), row_bytes, row_bytes,
                                      uint32_t(rows), box_bytes, 1, swizzle});
  };
  return map(&p->a, op.a, kTileRows, !C::kPacked) &&
         map(&p->b, op.b, C::kTileColumns / C::kCtas, true);
}

}  // namespace wlib::fp4

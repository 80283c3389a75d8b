// The packed INT4 layout: as the headers state it, and packed anew from what CuTe says about the
// registers of the instruction that reads it.
#include <pybind11/stl.h>

#include <cstring>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <vector>

#include "int4fp8/decode_plan.h"
#include "int4fp8/gemm_plan.h"
#include "probe/bind.h"
#include "wlib/layout/int4_tile.h"
#include "wlib/numerics/odd_code.h"

namespace wlib::probe {
namespace {

constexpr int kThreads = 128, kRows = int4::kTileRows, kColumns = int4::kTileColumns;
constexpr int kStepColumns = 32;  // of one wgmma

struct Place {
  int row, column;
};
// The A element of m64k32 that thread t holds in byte v % 4 of its register v / 4.
Place fragment_place(int t, int v) {
  const int index = cute::SM90::GMMA::ALayout_64x32{}(t, v);
  return {index % kRows, index / kRows};
}
// The row of the accumulators v of thread t.
int accumulator_row(int t, int v) { return cute::SM90::GMMA::CLayout_64x8{}(t, v) % kRows; }

struct Weight {
  Array<int8_t> codes;               // [n, k]
  Array<uint16_t> scale;             // [n, groups], bits of BF16
  std::optional<Array<float>> zero;  // [n, groups]
  Array<float> channel_scale;        // [n]
  int n, k, group_size;

  int code(int row, int column) const { return row < n && column < k ? codes.at(row, column) : 0; }
};

// 16 bytes per thread and half of the tile: two k steps of two words. A word's low half-bytes are
// of an even register, its high ones of the next: rows r and r + 8.
void pack_codes(const Weight& w, int first_row, int first_column, uint8_t* out) {
  for (int half = 0; half < 2; ++half) {
    for (int t = 0; t < kThreads; ++t) {
      for (int step = 0; step < 2; ++step) {
        for (int word = 0; word < 2; ++word) {
          for (int j = 0; j < 4; ++j) {
            const Place a = fragment_place(t, word * 8 + j),
                        b = fragment_place(t, word * 8 + 4 + j);
            const int column = first_column + (half * 2 + step) * kStepColumns;
            *out++ = odd_encode_pair(w.code(first_row + a.row, column + a.column),
                                     w.code(first_row + b.row, column + b.column));
          }
        }
      }
    }
  }
}

// Per group and quad of threads: the values of the two rows that those threads accumulate.
template <class T>
void pack_groups(const Weight& w, const Array<T>& values, int first_row, int first_column,
                 uint8_t*& out) {
  const int groups = int4::groups_per_tile(w.group_size, w.k);
  for (int g = 0; g < groups; ++g) {
    const int column = first_column + g * (kColumns / groups);
    for (int t = 0; t < kThreads; t += 4) {
      for (int v = 0; v < 4; v += 2) {
        const int row = first_row + accumulator_row(t, v);
        const bool inside = row < w.n && column < w.k;
        const T value = inside ? values.at(row, column / w.group_size) : T(0);
        std::memcpy(out, &value, sizeof(T));
        out += sizeof(T);
      }
    }
  }
}

py::array_t<uint8_t> pack(const Weight& w) {
  const int blocks = int(int4::ceil_div(w.n, kRows)), tiles = int(int4::ceil_div(w.k, kColumns));
  const int4::Layout layout{int4::groups_per_tile(w.group_size, w.k), w.zero.has_value()};
  py::array_t<uint8_t> packed({int64_t(blocks), layout.block_bytes(tiles)});
  for (int block = 0; block < blocks; ++block) {
    uint8_t* out = packed.mutable_data(block, 0);
    for (int tile = 0; tile < tiles; ++tile) {
      const int row = block * kRows, column = tile * kColumns;
      pack_codes(w, row, column, out);
      out += int4::kCodeBytes;
      pack_groups(w, w.scale, row, column, out);
      if (w.zero) pack_groups(w, *w.zero, row, column, out);
    }
    for (int row = block * kRows; row < (block + 1) * kRows; ++row, out += sizeof(float)) {
      const float scale = row < w.n ? w.channel_scale.at(row) : 0;
      std::memcpy(out, &scale, sizeof scale);
    }
  }
  return packed;
}

// clusters[i]: how many clusters of 2^i CTAs run at once.
std::pair<int, int> plan(int row_blocks, int k_tiles, int tokens, const std::vector<int>& clusters,
                         bool shared) {
  int4fp8::DecodePlan plan;
  const auto resident = [&](int split, int* count) {
    *count = clusters.at(std::bit_width(unsigned(split)) - 1);
    return 0;
  };
  int4fp8::plan_decode(row_blocks, k_tiles, tokens, resident, &plan, shared);
  return {plan.split_log2, plan.clusters};
}

const char* large_plan(int64_t m, int64_t n, int64_t k, int sms, int64_t experts) {
  return int4fp8::large_kernel_name(int4fp8::plan_large(m, n, k, sms, experts));
}

}  // namespace

void bind_layout(py::module_& m) {
  m.def("int4_groups_per_tile", &int4::groups_per_tile);
  m.def("int4_block_bytes", [](int groups, bool zeros, int64_t k_tiles) {
    return int4::Layout{groups, zeros}.block_bytes(k_tiles);
  });
  m.def("int4_scale_index", &int4::scale_index);
  m.def("int4_code_position", [](int byte) {
    const int4::CodePosition p = int4::code_position(byte);
    return std::pair(p.row, p.column);
  });
  m.def("int4_fragment_place", [](int t, int v) {
    const Place p = fragment_place(t, v);
    return std::pair(p.row, p.column);
  });
  m.def("int4_pack", [](const Array<int8_t>& codes, const Array<uint16_t>& scale,
                        const std::optional<Array<float>>& zero, const Array<float>& channel_scale,
                        int group_size) {
    return pack(
        {codes, scale, zero, channel_scale, int(codes.shape(0)), int(codes.shape(1)), group_size});
  });
  m.def("int4fp8_decode_plan", &plan, py::arg("row_blocks"), py::arg("k_tiles"), py::arg("tokens"),
        py::arg("clusters"), py::arg("shared") = true);
  m.def("int4fp8_decode_cost", &int4fp8::decode_cost, py::arg("row_blocks"), py::arg("k_tiles"),
        py::arg("tokens"), py::arg("split"), py::arg("clusters"), py::arg("shared") = true);
  m.def("int4fp8_large_plan", &large_plan, py::arg("m"), py::arg("n"), py::arg("k"), py::arg("sms"),
        py::arg("experts") = 0);
  m.def("int4fp8_planned_tokens", &int4fp8::planned_tokens);
}

}  // namespace wlib::probe

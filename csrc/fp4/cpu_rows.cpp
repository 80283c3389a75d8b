#include "fp4/cpu_rows.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "wlib/numerics/e5m2.h"
#include "wlib/numerics/hadamard.h"

namespace wlib::fp4::WLIB_ISA {
namespace {

template <int kSize>
void rotate_block(float* data, const float* signs) {
  float x[kSize];
  for (int i = 0; i < kSize; ++i) x[i] = signs ? data[i] * signs[i] : data[i];
  hadamard_stage<1>(x);
  hadamard_stage<2>(x);
  hadamard_stage<4>(x);
  hadamard_stage<8>(x);
  if constexpr (kSize >= 32) hadamard_stage<16>(x);
  if constexpr (kSize >= 64) hadamard_stage<32>(x);
  if constexpr (kSize >= 128) hadamard_stage<64>(x);
  for (int i = 0; i < kSize; ++i) data[i] = x[i] * hadamard_scale(kSize) + 0.0f;
}

void rotate(float* x, int64_t count, int size, const float* signs) {
  const auto block = size == 16   ? rotate_block<16>
                     : size == 32 ? rotate_block<32>
                     : size == 64 ? rotate_block<64>
                                  : rotate_block<128>;
  for (int64_t i = 0; i < count; i += size) block(x + i, signs);
}

template <int N>
void load(const float* from, float (&x)[N]) {
  std::memcpy(x, from, sizeof x);
}

float largest(const float* x, int64_t count) {
  uint32_t result = 0;
  for (int64_t i = 0; i < count; i += kNvBlock) {
    float block[kNvBlock];
    load(x + i, block);
    const uint32_t bits = largest_bits(block);
    if (bits < 0x7f800000u) result = std::max(result, bits);
  }
  return std::bit_cast<float>(result);
}

void block_maxima(const float* x, int64_t count, uint32_t* bits) {
  for (int64_t i = 0; i < count; i += kNvBlock) {
    float block[kNvBlock];
    load(x + i, block);
    bits[i / kNvBlock] = largest_bits(block);
  }
}

// The codes of N values from `element` on, one per byte.
template <int N>
void encode(const float (&x)[N], float multiplier, bool is_nan, const RowInputs& in,
            int64_t element, uint8_t (&codes)[N]) {
  if (is_nan) {
    std::memset(codes, 0, N);
  } else if (in.p.rounding != Rounding::kStochastic) {
    for (int i = 0; i < N; ++i) codes[i] = uint8_t(float_to_e2m1(x[i] * multiplier));
  } else {
    const RoundingKey key = in.p.key();
    for (int i = 0; i < N; i += kRoundingBlock) {
      const Draw d = rounding_draw(key, uint64_t(element + i) / kRoundingBlock);
      for (int j = 0; j < kRoundingBlock; ++j)
        codes[i + j] = uint8_t(float_to_e2m1_stochastic(x[i + j] * multiplier, code_bits(d, j)));
    }
  }
}

template <int N>
void pack(const uint8_t (&codes)[N], uint8_t* out) {
  for (int i = 0; i < N / 2; ++i) out[i] = uint8_t(codes[2 * i] | codes[2 * i + 1] << 4);
}

// Bit i: |x[i] * multiplier| < 6.
template <int N>
void write_mask(const float (&x)[N], float multiplier, bool is_nan, uint8_t* out) {
  for (int j = 0; j < N / 8; ++j) {
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i)
      bits |= uint32_t(!is_nan && __builtin_fabsf(x[8 * j + i] * multiplier) < kE2M1Max) << i;
    out[j] = uint8_t(bits);
  }
}

// Largest scale of a row that is not NaN; 0 if there is none.
int largest_scale(const uint8_t* scales, int64_t count) {
  int largest = 0;
  for (int64_t i = 0; i < count; ++i)
    if (scales[i] != kE8M0NaN) largest = std::max<int>(largest, scales[i]);
  return largest;
}

void quantize_mx(const float* row, const RowInputs& in, const RowOutputs& out) {
  const QuantizeParams& p = in.p;
  const int64_t blocks = p.columns() / kMxBlock;
  float x[kMxBlock];
  for (int64_t i = 0; i < blocks; ++i) {
    load(row + i * kMxBlock, x);
    out.scales[i] = uint8_t(mx_scale(x, p.rule));
  }
  const int top = largest_scale(out.scales, blocks);
  const int floor = p.window ? std::max(0, top - (p.window - 1)) : 0;
  const int base = top - carrier_range(p.carrier).largest;  // biased exponent of the row's scale
  if (out.row_scale) *out.row_scale = row_scale(base);
  for (int64_t i = 0; i < blocks; ++i) {
    load(row + i * kMxBlock, x);
    const int scale = std::max<int>(out.scales[i], floor);
    const bool is_nan = scale == int(kE8M0NaN);
    out.scales[i] = uint8_t(scale);
    const float multiplier = mx_multiplier(uint32_t(scale), p.rule);
    uint8_t codes[kMxBlock];
    encode(x, multiplier, is_nan, in, in.row * p.columns() + i * kMxBlock, codes);
    if (out.codes) pack(codes, out.codes + i * kMxBlock / 2);
    if (out.mask) write_mask(x, multiplier, is_nan, out.mask + i * kMxBlock / 8);
    if (!out.carrier) continue;
    uint8_t* bytes = out.carrier + i * kMxBlock;
    const CarrierTable table = carrier_table(p.carrier, scale - base);
    for (int j = 0; j < kMxBlock; ++j)
      bytes[j] = is_nan ? carrier_nan(p.carrier) : carrier_byte(table, codes[j]);
  }
}

// The final scale of a block by MS-EDEN.
uint8_t correct(const float (&x)[kNvBlock], const uint8_t (&codes)[kNvBlock], uint8_t scale,
                float to_global, const RoundingKey& key, int64_t block) {
  float units[kNvBlock];
  for (int i = 0; i < kNvBlock; ++i) units[i] = x[i] * to_global;
  return ms_eden_scale(units, codes, scale, scale_bits(key, uint64_t(block)));
}

void quantize_nv(const float* row, const RowInputs& in, const RowOutputs& out) {
  const QuantizeParams& p = in.p;
  const float to_global = in.global_scale > 0 ? 1 / in.global_scale : 0;
  const float divisor = nv_divisor(p.rounding);
  const int64_t blocks = p.columns() / kNvBlock;
  for (int64_t i = 0; i < blocks; ++i) {
    float x[kNvBlock];
    uint8_t codes[kNvBlock];
    load(row + i * kNvBlock, x);
    const uint32_t largest = in.maxima ? in.maxima[i] : largest_bits(x);
    const uint8_t scale = nv_scale(x, largest, p.rule, divisor, to_global);
    const bool is_nan = scale == 0x7f;
    const float multiplier = scale == 0 || is_nan ? 0 : to_global / e4m3_to_float(scale);
    encode(x, multiplier, is_nan, in, (in.row * blocks + i) * kNvBlock, codes);
    out.scales[i] = p.rounding != Rounding::kMsEden
                        ? scale
                        : correct(x, codes, scale, to_global, p.key(), in.row * blocks + i);
    if (out.codes) pack(codes, out.codes + i * kNvBlock / 2);
    if (out.mask) write_mask(x, multiplier, is_nan, out.mask + i * kNvBlock / 8);
  }
}

void quantize(const float* x, const RowInputs& in, const RowOutputs& out) {
  (is_mx(in.p.rule) ? quantize_mx : quantize_nv)(x, in, out);
}

constexpr auto kE2M1Table = [] {
  std::array<float, 16> table{};
  for (int i = 0; i < 16; ++i) table[i] = e2m1_to_float(uint32_t(i));
  return table;
}();

template <int kBlock, class ToFloat>
void expand(const uint8_t* codes, const uint8_t* scales, int64_t count, float* values,
            ToFloat to_float) {
  for (int64_t i = 0; i < count; i += kBlock) {
    const float scale = to_float(scales[i / kBlock]);
    for (int j = 0; j < kBlock; ++j) {
      const int nibble = codes[(i + j) / 2] >> j % 2 * 4 & 15;
      values[i + j] = kE2M1Table[nibble] * scale;
    }
  }
}
void expand_mx(const uint8_t* codes, const uint8_t* scales, int64_t count, float* values) {
  expand<kMxBlock>(codes, scales, count, values, e8m0_to_float);
}
void expand_nv(const uint8_t* codes, const uint8_t* scales, int64_t count, float* values) {
  expand<kNvBlock>(codes, scales, count, values, e4m3_to_float);
}

void expand_carrier(const uint8_t* bytes, Carrier type, int64_t count, float* values) {
  if (type == Carrier::kE4M3) {
    for (int64_t i = 0; i < count; ++i) values[i] = e4m3_to_float(bytes[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) values[i] = e5m2_to_float(bytes[i]);
  }
}

float exact_dot(const uint8_t* a, const uint8_t* a_scales, const uint8_t* b,
                const uint8_t* b_scales, int64_t count) {
  constexpr int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  float total = 0;
  for (int64_t i = 0; i < count / kMxBlock; ++i) {
    int32_t sum = 0;  // in units of 1/4, at most 32 * 144
    for (int j = 0; j < kMxBlock / 2; ++j) {
      const uint8_t x = a[i * kMxBlock / 2 + j], y = b[i * kMxBlock / 2 + j];
      sum += kTwice[x & 15] * kTwice[y & 15] + kTwice[x >> 4] * kTwice[y >> 4];
    }
    total += float(sum) * 0.25f * e8m0_to_float(a_scales[i]) * e8m0_to_float(b_scales[i]);
  }
  return total;
}

}  // namespace

extern const CpuRows kRows;
const CpuRows kRows = {rotate,    largest,   block_maxima,   quantize,
                       expand_mx, expand_nv, expand_carrier, exact_dot};

}  // namespace wlib::fp4::WLIB_ISA

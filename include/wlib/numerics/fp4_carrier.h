// FP8 carriers of MXFP4: the value code * 2^d of an E2M1 code is exact in E4M3 for d in -8..6 and
// in E5M2 for d in -15..13. A row of such bytes with one power of two for all of it is therefore
// the MXFP4 row itself, ready for FP8 tensor cores.
#pragma once

#include <bit>

#include "wlib/platform.h"

namespace wlib::fp4 {

enum class Carrier : int { kNone, kE4M3, kE5M2 };

struct CarrierRange {
  int least, largest;  // of d
  WLIB_HOST_DEVICE constexpr int binades() const { return largest - least + 1; }
};
WLIB_HOST_DEVICE constexpr CarrierRange carrier_range(Carrier carrier) {
  return carrier == Carrier::kE5M2 ? CarrierRange{-15, 13} : CarrierRange{-8, 6};
}
WLIB_HOST_DEVICE constexpr uint8_t carrier_nan(Carrier) { return 0x7f; }

// 2^(biased - 127) for -141 <= biased <= 246: below -126 it is subnormal.
WLIB_HOST_DEVICE constexpr float row_scale(int biased) {
  return std::bit_cast<float>(biased > 0 ? uint32_t(biased) << 23 : 0x00400000u >> -biased);
}

// Bytes of the eight magnitudes times 2^d: magnitude i in byte i % 4 of word i / 4.
struct CarrierTable {
  uint32_t low, high;
};
// From `least` on 0.5 * 2^d is normal: a step of d adds one to every exponent but that of zero.
struct NormalTables {
  int least;                 // d
  CarrierTable first, step;  // of it, and what each further d adds
  WLIB_HOST_DEVICE constexpr CarrierTable at(uint32_t steps) const {
    return {first.low + steps * step.low, first.high + steps * step.high};
  }
};
WLIB_HOST_DEVICE constexpr NormalTables normal_tables(Carrier carrier) {
  if (carrier == Carrier::kE5M2)
    return {-13, {0x0a080400u, 0x12100e0cu}, {0x04040400u, 0x04040404u}};
  return {-5, {0x14100800u, 0x24201c18u}, {0x08080800u, 0x08080808u}};
}
WLIB_HOST_DEVICE constexpr CarrierTable carrier_table(Carrier carrier, int d) {
  const NormalTables normal = normal_tables(carrier);
  if (d >= normal.least) return normal.at(uint32_t(d - normal.least));
  // A few subnormals.
  if (carrier == Carrier::kE5M2)
    return d == -14 ? CarrierTable{0x06040200u, 0x0e0c0a08u}
                    : CarrierTable{0x03020100u, 0x0a080604u};
  return d == -6   ? CarrierTable{0x0c080400u, 0x1c181410u}
         : d == -7 ? CarrierTable{0x06040200u, 0x14100c08u}
                   : CarrierTable{0x03020100u, 0x0c080604u};
}

WLIB_HOST_DEVICE constexpr uint8_t carrier_byte(CarrierTable table, uint32_t code) {
  const uint32_t word = code & 4 ? table.high : table.low;
  return uint8_t((word >> (code & 3) * 8 & 0x7f) | (code & 8) << 4);
}

}  // namespace wlib::fp4

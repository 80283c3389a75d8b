// Vectors of the CPU kernels, one source for every instruction set: what GCC's vector extension
// cannot express is chosen here.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

// Nothing here is seen outside the files that are compiled for one instruction set.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace wlib::int4fp8::WLIB_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
using Floats = float __attribute__((vector_size(kLanes * 4)));
using Ints = int32_t __attribute__((vector_size(kLanes * 4)));
using Bytes = int8_t __attribute__((vector_size(kLanes * 4)));
using Shorts = int16_t __attribute__((vector_size(kLanes * 4)));

template <class Vector>
Vector load(const void* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Not value + 0, which would have to turn -0 into 0.
inline Floats broadcast(float value) { return value - Floats{}; }

// The codes q + 8, a byte each, of the two rows whose odd codes (odd_code.h) share `bytes`: for
// sign s and magnitude m they are s ? 7 - m : 8 + m, which is m ^ 8 ^ (s ? 15 : 0).
struct CodePair {
  Ints a, b;
};
#if defined(__GFNI__) && defined(__AVX512F__)
// Each byte of a matrix tells which bits of a byte one bit of its code adds up.
inline CodePair unpack(Ints bytes) {
  const __m512i code_a = _mm512_set1_epi64(int64_t(0x8284888000000000)),
                code_b = _mm512_set1_epi64(int64_t(0x1121410100000000));
  return {Ints(_mm512_gf2p8affine_epi64_epi8(__m512i(bytes), code_a, 8)),
          Ints(_mm512_gf2p8affine_epi64_epi8(__m512i(bytes), code_b, 8))};
}
#else
inline CodePair unpack(Ints bytes) {
  const Ints signs = (bytes >> 7 & 0x01010101) | (bytes & 0x01010101) << 4;
  const Ints magnitudes = (bytes >> 1 & 0x07070707) | (bytes & 0x70707070);
  const Ints codes = magnitudes ^ ((signs << 4) - signs) ^ int32_t(0x88888888);
  return {codes & 0x0f0f0f0f, codes >> 4 & 0x0f0f0f0f};
}
#endif

#if defined(__AVX512VNNI__)
constexpr bool kWideSums = true;
#else
constexpr bool kWideSums = false;
#endif
// dot: sums + codes * digits, bytes 0..15 times bytes -127..127, neighbours added up into lanes of
// 16 bits, or of 32 if kWideSums; at most 8 products may meet in a lane of 16.
// widen: total + weight * sums, in lanes of 32 bits; sums fit into 16.
#if defined(__AVX512VNNI__)
inline Ints dot(Ints sums, Ints codes, Ints digits) {
  return Ints(_mm512_dpbusd_epi32(__m512i(sums), __m512i(codes), __m512i(digits)));
}
inline Ints widen(Ints total, Ints sums, int weight) {
  return Ints(_mm512_dpwssd_epi32(__m512i(total), __m512i(sums), _mm512_set1_epi32(weight)));
}
#elif defined(__AVX512BW__)
inline Ints dot(Ints sums, Ints codes, Ints digits) {
  return Ints(Shorts(sums) + Shorts(_mm512_maddubs_epi16(__m512i(codes), __m512i(digits))));
}
inline Ints widen(Ints total, Ints sums, int weight) {
  return total + Ints(_mm512_madd_epi16(__m512i(sums), _mm512_set1_epi16(short(weight))));
}
#elif defined(__AVX2__)
inline Ints dot(Ints sums, Ints codes, Ints digits) {
  return Ints(Shorts(sums) + Shorts(_mm256_maddubs_epi16(__m256i(codes), __m256i(digits))));
}
inline Ints widen(Ints total, Ints sums, int weight) {
  return total + Ints(_mm256_madd_epi16(__m256i(sums), _mm256_set1_epi16(short(weight))));
}
#else
inline Ints dot(Ints sums, Ints codes, Ints digits) {
  const Shorts c = Shorts(codes), d = Shorts(digits);
  return Ints(Shorts(sums) + (c & 255) * (d << 8 >> 8) + (c >> 8) * (d >> 8));
}
inline Ints widen(Ints total, Ints sums, int weight) {
  return total + ((sums << 16 >> 16) + (sums >> 16)) * weight;
}
#endif

// Lane i of the result is lane 2i + kOdd of x followed by y.
template <int kOdd>
Floats every_other(Floats x, Floats y) {
  Ints lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = 2 * i + kOdd;
  return __builtin_shuffle(x, y, lanes);
}
// Lane i of the result is the sum of all lanes of v[i * stride].
template <int kCount = kLanes>
Floats add_lanes(const Floats* v, int64_t stride) {
  if constexpr (kCount == 1) {
    return *v;
  } else {
    const Floats x = add_lanes<kCount / 2>(v, stride),
                 y = add_lanes<kCount / 2>(v + kCount / 2 * stride, stride);
    return every_other<0>(x, y) + every_other<1>(x, y);
  }
}

// The 64 bytes of a run are 4 x 4 words; the order of the codes is the transpose of the columns'.
constexpr int kRun = 64;
constexpr int kParts = kRun / int(sizeof(Ints));  // vectors that hold a run

inline void transpose(Ints (&run)[kParts]) {
  Ints result[kParts];
  for (int part = 0; part < kParts; ++part) {
    Ints words{};
    for (int i = 0; i < kLanes; ++i) {
      const int word = part * kLanes + i;
      words[i] = word % 4 * 4 + word / 4;
    }
    result[part] = __builtin_shuffle(run[0], run[kParts - 1], words);
  }
  std::memcpy(run, result, sizeof run);
}

}  // namespace wlib::int4fp8::WLIB_ISA

// One vector of floats of the instruction set that this file is compiled for, and what its compiler extensions lack:
// conversion from and to halves and bytes, and transposition. Every name lies in a namespace of its own for each
// instruction set, because the same sources are compiled for several and linked into one module.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512VBMI__)
#define PPCMI_ISA avx512
#define PPCMI_LANES 16
#define PPCMI_RADIX_BITS 4  // 16 rows of a butterfly and their temporaries in 32 registers
#elif defined(__AVX2__)
#define PPCMI_ISA avx2
#define PPCMI_LANES 8
#define PPCMI_RADIX_BITS 3
#else
#define PPCMI_ISA portable
#define PPCMI_LANES 4
#if defined(__aarch64__)
#define PPCMI_RADIX_BITS 4
#else
#define PPCMI_RADIX_BITS 3
#endif
#endif

#define PPCMI_INLINE static inline __attribute__((always_inline))
#define PPCMI_UNROLL _Pragma("GCC unroll 16")

namespace ppcmi {
namespace PPCMI_ISA {

constexpr int kLanes = PPCMI_LANES;
constexpr int kRadixBits = PPCMI_RADIX_BITS;

typedef float Vec __attribute__((vector_size(4 * PPCMI_LANES)));
typedef std::int32_t Ints __attribute__((vector_size(4 * PPCMI_LANES)));
typedef std::uint32_t Bits __attribute__((vector_size(4 * PPCMI_LANES)));
typedef std::uint16_t Shorts __attribute__((vector_size(2 * PPCMI_LANES)));
typedef std::uint8_t Bytes __attribute__((vector_size(PPCMI_LANES)));

struct Half {
  std::uint16_t bits;
};

struct Bfloat {
  std::uint16_t bits;
};

template <typename V, typename T>
PPCMI_INLINE V load_raw(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename V, typename T>
PPCMI_INLINE void store_raw(T* to, V value) {
  std::memcpy(to, &value, sizeof value);
}

PPCMI_INLINE Vec as_floats(Bits bits) { return reinterpret_cast<Vec>(bits); }
PPCMI_INLINE Bits as_bits(Vec value) { return reinterpret_cast<Bits>(value); }
PPCMI_INLINE Vec broadcast(float value) { return value - Vec{}; }

PPCMI_INLINE Ints load_ints(const std::uint8_t* from) {
#if defined(__AVX512VBMI__)
  return (Ints)_mm512_cvtepu8_epi32(load_raw<__m128i>(from));
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  return __builtin_convertvector(load_raw<Bytes>(from), Ints);
#endif
}

PPCMI_INLINE Vec load(const float* from) { return load_raw<Vec>(from); }

PPCMI_INLINE Vec load(const Bfloat* from) {
  return as_floats(__builtin_convertvector(load_raw<Shorts>(from), Bits) << 16);
}

PPCMI_INLINE void store(float* to, Vec value) { store_raw(to, value); }

// To nearest, ties to even, as torch rounds; a NaN stays one.
PPCMI_INLINE void store(Bfloat* to, Vec value) {
  const Bits bits = as_bits(value);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits result = value == value ? rounded : (Bits{} + 0x7fc0u);
  store_raw(to, __builtin_convertvector(result, Shorts));
}

#if defined(__AVX512VBMI__)
PPCMI_INLINE Vec load(const Half* from) { return (Vec)_mm512_cvtph_ps((__m256i)load_raw<Shorts>(from)); }
PPCMI_INLINE void store(Half* to, Vec value) {
  store_raw(to, (Shorts)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
PPCMI_INLINE Vec load(const Half* from) { return (Vec)_mm256_cvtph_ps((__m128i)load_raw<Shorts>(from)); }
PPCMI_INLINE void store(Half* to, Vec value) {
  store_raw(to, (Shorts)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
}
#else
// A shift puts the half's exponent where a float's is; the multiplication mends the bias, subnormals included.
PPCMI_INLINE Vec load(const Half* from) {
  const Bits bits = __builtin_convertvector(load_raw<Shorts>(from), Bits);
  const Bits sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  const Bits finite = as_bits(as_floats(rest << 13) * 0x1p112f);
  const Bits special = ((rest & 0x3ffu) << 13) | 0x7f800000u;
  return as_floats(sign | (rest >= 0x7c00u ? special : finite));
}
// Adding 0.5 leaves a rounded subnormal in the low bits of the mantissa; the sum after it rounds the others to even.
PPCMI_INLINE void store(Half* to, Vec value) {
  const Bits bits = as_bits(value), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  const Bits subnormal = as_bits(as_floats(rest) + 0.5f) - 0x3f000000u;
  const Bits normal = (rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13;
  Bits half = rest < 0x38800000u ? subnormal : normal;
  half = rest >= 0x477ff000u ? (Bits{} + 0x7c00u) : half;
  half = rest > 0x7f800000u ? (Bits{} + 0x7e00u) : half;
  store_raw(to, __builtin_convertvector(sign | half, Shorts));
}
#endif

PPCMI_INLINE Vec square_root(Vec value) {
#if defined(__AVX512VBMI__)
  return (Vec)_mm512_sqrt_ps((__m512)value);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)value);
#else
  PPCMI_UNROLL for (int i = 0; i < kLanes; ++i) value[i] = __builtin_sqrtf(value[i]);
  return value;
#endif
}

// floor(value) as a byte, bounded to 0..255; a NaN gives 255, as torch.bucketize puts it above every threshold.
PPCMI_INLINE void store_cells(std::uint8_t* to, Vec value) {
#if defined(__AVX512VBMI__)
  // The second operand is what the maximum returns for a NaN; its conversion, as that of anything past 2^31, is the
  // largest unsigned number, which saturates.
  const __m512 bounded = _mm512_max_ps(_mm512_setzero_ps(), (__m512)value);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(_mm512_cvttps_epi32(bounded)));
#elif defined(__AVX2__)
  const __m256 low = _mm256_min_ps((__m256)value, _mm256_set1_ps(255.0f));
  const __m256i whole = _mm256_cvttps_epi32(_mm256_max_ps(low, _mm256_setzero_ps()));
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
#else
  const Vec top = broadcast(255.0f);
  Vec bounded = value < top ? value : top;
  bounded = bounded > 0.0f ? bounded : Vec{};
  store_raw(to, __builtin_convertvector(__builtin_convertvector(bounded, Ints), Bytes));
#endif
}

// The same of four vectors side by side. Saturating packs bound what leaves 0..255; a NaN is the minimum's second
// operand.
PPCMI_INLINE void store_cells(std::uint8_t* to, const Vec (&values)[4]) {
#if defined(__AVX512VBMI__)
  __m512i whole[4];
  PPCMI_UNROLL for (int i = 0; i < 4; ++i) whole[i] =
      _mm512_cvttps_epi32(_mm512_min_ps((__m512)values[i], _mm512_set1_ps(255.0f)));
  const __m512i low = _mm512_packs_epi32(whole[0], whole[1]), high = _mm512_packs_epi32(whole[2], whole[3]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
#else
  PPCMI_UNROLL for (int i = 0; i < 4; ++i) store_cells(to + i * kLanes, values[i]);
#endif
}

// table[index] for 16 floats.
struct Table16 {
  const float* values;

  PPCMI_INLINE Vec at(const Table16& table, Ints index) {
#if defined(__AVX512VBMI__)
    return (Vec)_mm512_permutexvar_ps((__m512i)index, _mm512_loadu_ps(table.values));
#elif defined(__AVX2__)
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.values), (__m256i)index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.values + 8), (__m256i)index);
    return (Vec)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)index, 28)));
#else
    Vec result;
    for (int i = 0; i < kLanes; ++i) result[i] = table.values[index[i]];
    return result;
#endif
  }
};

// rows[i] lane j becomes rows[j] lane i.
PPCMI_INLINE void transpose(Vec (&rows)[kLanes]) {
#if defined(__AVX512VBMI__)
  __m512 a[16], b[16];
  PPCMI_UNROLL for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps((__m512)rows[i], (__m512)rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps((__m512)rows[i], (__m512)rows[i + 1]);
  }
  PPCMI_UNROLL for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  // b[4 g + c] holds, in its 128-bit part p, rows 4 g .. 4 g + 3 of column 4 p + c.
  PPCMI_UNROLL for (int c = 0; c < 4; ++c) {
    const __m512 low01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88),
                 high01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
    const __m512 low23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
    const __m512 high23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
    rows[c] = (Vec)_mm512_shuffle_f32x4(low01, low23, 0x88);
    rows[8 + c] = (Vec)_mm512_shuffle_f32x4(low01, low23, 0xdd);
    rows[4 + c] = (Vec)_mm512_shuffle_f32x4(high01, high23, 0x88);
    rows[12 + c] = (Vec)_mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
#elif defined(__AVX2__)
  __m256 a[8], b[8];
  PPCMI_UNROLL for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps((__m256)rows[i], (__m256)rows[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps((__m256)rows[i], (__m256)rows[i + 1]);
  }
  PPCMI_UNROLL for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  PPCMI_UNROLL for (int c = 0; c < 4; ++c) {
    rows[c] = (Vec)_mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
    rows[4 + c] = (Vec)_mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
  }
#else
  Vec out[kLanes];
  PPCMI_UNROLL for (int i = 0; i < kLanes; ++i) PPCMI_UNROLL for (int j = 0; j < kLanes; ++j) out[i][j] = rows[j][i];
  PPCMI_UNROLL for (int i = 0; i < kLanes; ++i) rows[i] = out[i];
#endif
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

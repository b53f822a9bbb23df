// CUDA's index and half types for a host compiler: same layout, same rounding.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace ppcmi::shim {

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: expected two types of one size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// `value` >> `shift`, the nearest result, ties to even; 1 <= shift <= 31.
inline std::uint32_t shift_to_nearest_even(std::uint32_t value, int shift) {
  const std::uint32_t quotient = value >> shift;
  const std::uint32_t remainder = value & ((1u << shift) - 1);
  const std::uint32_t half = 1u << (shift - 1);
  return quotient + (remainder > half || (remainder == half && (quotient & 1)));
}

constexpr std::uint16_t kCanonicalNan = 0x7fff;  // what the conversions of a GPU give for every NaN, in both types

inline std::uint16_t half_bits(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return kCanonicalNan;
  if (magnitude >= 0x47800000) return static_cast<std::uint16_t>(sign | 0x7c00);  // 65536 and beyond, infinity
  if (magnitude >= 0x38800000) {  // normal; a carry out of the mantissa rightly raises the exponent, up to infinity
    return static_cast<std::uint16_t>(sign | shift_to_nearest_even(magnitude - (112u << 23), 13));
  }
  const int shift = 126 - static_cast<int>(magnitude >> 23);  // to units of 2^-24
  if (shift > 31) return static_cast<std::uint16_t>(sign);
  return static_cast<std::uint16_t>(sign | shift_to_nearest_even((magnitude & 0x7fffff) | 0x800000, shift));
}

inline float half_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000 | static_cast<std::uint32_t>(mantissa) << 13);
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                        : std::ldexp(static_cast<float>(mantissa | 0x400), exponent - 25);
  return bit_cast<float>(sign | bit_cast<std::uint32_t>(magnitude));
}

inline std::uint16_t bfloat16_bits(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return kCanonicalNan;
  return static_cast<std::uint16_t>(shift_to_nearest_even(bits, 16));
}

}  // namespace ppcmi::shim

struct __half {
  std::uint16_t bits;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
};

inline float __half2float(__half value) { return ppcmi::shim::half_value(value.bits); }
inline __half __float2half_rn(float value) { return {ppcmi::shim::half_bits(value)}; }
inline float __bfloat162float(__nv_bfloat16 value) {
  return ppcmi::shim::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {ppcmi::shim::bfloat16_bits(value)}; }

struct __half2 {
  __half x, y;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

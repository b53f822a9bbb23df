// The tensor cores' product of small tiles, c += a b, with 10 bits of mantissa in a and b and sums in float32.
#pragma once

#include "portable.h"

namespace ppcmi::cuda {

// Rows and columns of a fragment that lane l = 4 g + t holds (PTX ISA, mma.m16n8k8 with .tf32):
// a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4) of [16, 8];  b: (t, g), (t + 4, g) of [8, 8];
// c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) of [16, 8].
struct FragmentA {
  float at[4];
};
struct FragmentB {
  float at[2];
};
struct FragmentC {
  float at[4];
};

#ifdef PPCMI_HOST_SHIM

inline float round_to_tf32(float value) { return __uint_as_float((__float_as_uint(value) + 0x1000u) & 0xffffe000u); }

// Ignores, as the hardware does, the bits that TF32 has not.
inline void multiply_add(FragmentC& c, const FragmentA& a, const FragmentB& b, shim::Site site = shim::here()) {
  std::uint32_t mine[6], all[32][6];
  for (int i = 0; i < 4; ++i) mine[i] = __float_as_uint(a.at[i]) & 0xffffe000u;
  for (int i = 0; i < 2; ++i) mine[4 + i] = __float_as_uint(b.at[i]) & 0xffffe000u;
  warp_exchange(mine, all, site);
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int k = 0; k < 8; ++k) {
      const std::uint32_t left = all[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2],
                          right = all[column * 4 + k % 4][4 + k / 4];
      c.at[i] += __uint_as_float(left) * __uint_as_float(right);
    }
  }
}

#else

__device__ __forceinline__ float round_to_tf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

__device__ __forceinline__ void multiply_add(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.at[0]), "+f"(c.at[1]), "+f"(c.at[2]), "+f"(c.at[3])
      : "r"(__float_as_uint(a.at[0])), "r"(__float_as_uint(a.at[1])), "r"(__float_as_uint(a.at[2])),
        "r"(__float_as_uint(a.at[3])), "r"(__float_as_uint(b.at[0])), "r"(__float_as_uint(b.at[1])));
}

#endif

// A fragment as the sum of two that TF32 holds: together 21 bits of mantissa.
template <typename Fragment>
struct Split {
  Fragment high, low;

  __device__ __forceinline__ explicit Split(const Fragment& value) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(Fragment) / sizeof(float)); ++i) {
      high.at[i] = round_to_tf32(value.at[i]);
      low.at[i] = round_to_tf32(value.at[i] - high.at[i]);
    }
  }
};

}  // namespace ppcmi::cuda

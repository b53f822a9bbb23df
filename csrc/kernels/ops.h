// The operators of the package on raw pointers. No torch, no Python; sizes are in elements.
#pragma once

#include <cstdint>

namespace ppcmi {

enum class Type : int { f32 = 0, f16 = 1, bf16 = 2 };

// [n, c, h, w] with any strides; `type` is ignored for codes, which are bytes.
struct Image {
  void* data;
  std::int64_t n, c, h, w;
  std::int64_t stride_n, stride_c, stride_h, stride_w;
  Type type;
};

// Key material of one transform, out = M v + offset. rounds == 0: `mix` is the dense M [dim, dim], rows permuted.
// rounds > 0: `mix` holds signs [rounds, dim], `factors` [rounds, odd, odd], `perm` [dim], out[i] = v[perm[i]].
struct Material {
  std::int64_t dim, rounds, odd;
  const float* mix;
  const float* factors;
  const std::int64_t* perm;
  const float* offset;
};

// data [count, out.c, dim]; index [n] picks one a sample (null: the first for all); offsets [count, out.c] or null.
// On the CPU callers have checked the indices; on a CUDA device, where looking at them would mean waiting, one that is
// out of range makes its sample NaN.
struct Matrices {
  const float* data;
  std::int64_t count;
  const std::int64_t* index;
  const float* offsets;
};

// Thresholds [2^bits - 1] to quantize, levels [2^bits] to dequantize. At 8 bits both are evenly spaced; below, the
// thresholds are multiples of 1 / kCellsPerUnit within -128 / kCellsPerUnit .. 127 / kCellsPerUnit, so that a value's
// cell of that width tells its code without a search.
struct Codebook {
  int bits;
  const float* table;
};

constexpr float kCellsPerUnit = 50.0f;

void klt(const Image& x, const Image& out, const Material& material, int fold, bool normalize, bool inverse,
         int threads);

void klt_quantize(const Image& x, const Image& codes, const Material& material, int fold, bool normalize,
                  const Codebook& thresholds, int threads);

void klt_dequantize(const Image& codes, const Image& out, const Material& material, int fold, const Codebook& levels,
                    int threads);

void switch_dequantize(const Image& codes, const Image& out, const Matrices& matrices, const Codebook& levels,
                       int threads);

}  // namespace ppcmi

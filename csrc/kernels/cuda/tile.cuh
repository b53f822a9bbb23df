// A tile: 32 * kWide positions of one sample as float rows [channel][pitch] in shared memory. A warp works on a row: a
// lane holds kWide positions next to each other, so rows of contiguous planes move in accesses of up to 16 bytes and no
// two lanes meet in a bank.
#pragma once

#include "../ops.h"
#include "portable.h"

namespace ppcmi::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// kWide elements next to each other, moved in one access.
template <typename T, int kWide>
struct alignas(sizeof(T) * kWide) Packed {
  T at[kWide];
};

template <int kWide>
using Floats = Packed<float, kWide>;

// The pad keeps the columns of a tile, which channels-last images are read by, from lying in one bank.
template <int kWide>
__host__ __device__ constexpr int pitch_of() {
  return 32 * kWide + kWide;
}

template <int kWide>
__device__ __forceinline__ Floats<kWide> load_row(const float* row) {
  return reinterpret_cast<const Floats<kWide>*>(row)[threadIdx.x % 32];
}

template <int kWide>
__device__ __forceinline__ void store_row(float* row, const Floats<kWide>& value) {
  reinterpret_cast<Floats<kWide>*>(row)[threadIdx.x % 32] = value;
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void from_float(float value, float& out) { out = value; }
__device__ __forceinline__ void from_float(float value, __half& out) { out = __float2half_rn(value); }
__device__ __forceinline__ void from_float(float value, __nv_bfloat16& out) { out = __float2bfloat16_rn(value); }

// Which positions a block has.
struct Span {
  std::int64_t n, first;
  int count;
};

// How an image meets a grid of h x w positions, each of fold x fold pixels.
struct View {
  Image image;
  std::int64_t h, w;
  int fold;
  bool vectors;        // rows can be moved in accesses of kWide elements
  bool channels_last;  // neighbours in memory are channels

  __device__ __forceinline__ std::int64_t position(const Span& span, int t) const {
    const std::int64_t flat = span.first + t, y = flat / w, x = flat - y * w;
    return span.n * image.stride_n + y * fold * image.stride_h + x * fold * image.stride_w;
  }

  // Of folded channel d = (c * fold + i) * fold + j.
  __device__ __forceinline__ std::int64_t channel(int d) const {
    if (fold == 1) return d * image.stride_c;
    const int c = d / (fold * fold), i = d / fold % fold, j = d % fold;
    return c * image.stride_c + i * image.stride_h + j * image.stride_w;
  }
};

inline View view_of(const Image& image, std::int64_t h, std::int64_t w, int fold, int wide, std::size_t element) {
  const bool dense = fold == 1 && image.stride_w == 1 && (image.stride_h == w || h == 1);
  const auto whole = [&](std::int64_t stride) { return stride % wide == 0; };
  const bool aligned = reinterpret_cast<std::uintptr_t>(image.data) % (element * static_cast<std::size_t>(wide)) == 0;
  View view{image, h, w, fold, false, image.stride_c == 1 && image.c > 1};
  view.vectors = dense && aligned && whole(h * w) && whole(image.stride_c) && whole(image.stride_n);
  return view;
}

template <int kWide>
__device__ __forceinline__ Span span_of(std::int64_t area) {
  constexpr int kTile = 32 * kWide;
  const std::int64_t tiles = (area + kTile - 1) / kTile, tile = blockIdx.x;
  const std::int64_t first = (tile % tiles) * kTile, left = area - first;
  return {tile / tiles, first, left < kTile ? static_cast<int>(left) : kTile};
}

// Calls visit(channel, position in the tile) for all of `channels` x span.count, by all threads, neighbours in memory
// one after the other.
template <typename Visit>
__device__ __forceinline__ void for_elements(const View& view, const Span& span, int channels, const Visit& visit) {
  const int total = channels * span.count;
  for (int k = static_cast<int>(threadIdx.x); k < total; k += kThreads) {
    if (view.channels_last) {
      visit(k % channels, k / channels);
    } else {
      visit(k / span.count, k % span.count);
    }
  }
}

}  // namespace ppcmi::cuda

// A tile: 32 * kWide positions of one sample as float rows [channel][pitch] in shared memory. A warp works on a row: a
// lane holds kWide positions next to each other, so rows of contiguous planes move in accesses of up to 16 bytes and no
// two lanes meet in a bank.
#pragma once

#include <type_traits>

#include "../ops.h"
#include "portable.h"

namespace ppcmi::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPack = 4;  // channels of a channels-last image in one access

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

// The cell of a value; a NaN, which fminf passes over, gets the highest.
__device__ __forceinline__ unsigned byte_of(float value) { return __float2uint_rz(fminf(value, 255.0f)); }

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
  bool packs;          // and can be moved in accesses of kPack elements

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
  const auto multiple_of = [&](std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(image.data) % bytes == 0; };
  const bool aligned = multiple_of(element * static_cast<std::size_t>(wide));
  View view{image, h, w, fold, false, image.stride_c == 1 && image.c > 1, false};
  view.vectors = dense && aligned && whole(h * w) && whole(image.stride_c) && whole(image.stride_n);
  const bool strides = image.stride_n % kPack == 0 && image.stride_h % kPack == 0 && image.stride_w % kPack == 0;
  view.packs = view.channels_last && fold == 1 && image.c % kPack == 0 && strides && multiple_of(element * kPack);
  return view;
}

template <int kWide>
__device__ __forceinline__ Span span_of(std::int64_t area) {
  constexpr int kTile = 32 * kWide;
  const std::int64_t tiles = (area + kTile - 1) / kTile, tile = blockIdx.x;
  const std::int64_t first = (tile % tiles) * kTile, left = area - first;
  return {tile / tiles, first, left < kTile ? static_cast<int>(left) : kTile};
}

// Calls visit(pack, channel, position in the tile, offset in the image) for channels [from, end) of all positions, by
// all threads; `pack` is a std::integral_constant, 1 or kPack: so many channels lie one after the other there.
// Neighbours in memory are visited by neighbouring lanes. With packs a warp takes 8 positions x 16 channels, which meet
// in few banks.
template <typename Visit>
__device__ __forceinline__ void for_elements(const View& view, const Span& span, int from, int end,
                                             const Visit& visit) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (view.packs) {
    for (int t = warp * 8 + lane % 8; t < span.count; t += kWarps * 8) {
      const std::int64_t offset = view.position(span, t);
      for (int c = from + lane / 8 * kPack; c < end; c += 4 * kPack)
        visit(std::integral_constant<int, kPack>{}, c, t, offset + view.channel(c));
    }
  } else if (view.channels_last) {
    for (int t = warp; t < span.count; t += kWarps) {
      const std::int64_t offset = view.position(span, t);
      for (int c = from + lane; c < end; c += 32)
        visit(std::integral_constant<int, 1>{}, c, t, offset + view.channel(c));
    }
  } else {
    for (int t = lane; t < span.count; t += 32) {
      const std::int64_t offset = view.position(span, t);
      for (int c = from + warp; c < end; c += kWarps)
        visit(std::integral_constant<int, 1>{}, c, t, offset + view.channel(c));
    }
  }
}

}  // namespace ppcmi::cuda

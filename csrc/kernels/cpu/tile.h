// A tile: `kTile` positions of one image as float rows [channel][position], so that every inner loop runs over
// positions and vectorizes whatever the channel count. All operators load a tile, work on it, and store it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../ops.h"

namespace ppcmi {

constexpr std::int64_t kTile = 64;
constexpr std::int64_t kParallelGrain = 1 << 15;  // elements below which a second thread costs more than it gives

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float read(float value) { return value; }

struct Half {
  std::uint16_t bits;
};

struct Bfloat {
  std::uint16_t bits;
};

// A shift puts the half's exponent where a float's is; the multiplication mends the bias, subnormals included.
inline float read(Half value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t rest = value.bits & 0x7fffu;
  const std::uint32_t finite = to_bits(from_bits(rest << 13) * 0x1p112f);
  const std::uint32_t special = 0x7f800000u | ((rest & 0x3ffu) << 13);
  return from_bits(sign | (rest >= 0x7c00u ? special : finite));
}

inline float read(Bfloat value) { return from_bits(static_cast<std::uint32_t>(value.bits) << 16); }

inline void write(float& out, float value) { out = value; }

inline void write(Bfloat& out, float value) {
  const std::uint32_t bits = to_bits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  out.bits = static_cast<std::uint16_t>(nan ? 0x7fc0u : rounded >> 16);
}

inline void write(Half& out, float value) {
  const std::uint32_t bits = to_bits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t rest = bits & 0x7fffffffu;
  // All cases, then a choice: without branches the loop over positions vectorizes. Adding 0.5 leaves a rounded
  // subnormal in the low bits of the mantissa; the sum after it rounds the others to even.
  const std::uint32_t subnormal = to_bits(from_bits(rest) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13;
  std::uint32_t half = rest < 0x38800000u ? subnormal : normal;
  half = rest >= 0x477ff000u ? 0x7c00u : half;
  half = rest > 0x7f800000u ? 0x7e00u : half;
  out.bits = static_cast<std::uint16_t>(sign | half);
}

// Which positions a tile holds: `count` of the grid [h, w] from flat position `first` on, in sample `n`.
struct Span {
  std::int64_t n, first, count;
};

// Where the positions of a span lie in an image whose h and w are `fold` times those of the grid.
struct Places {
  std::int64_t offset[kTile];
  bool contiguous;

  Places(const Image& image, const Span& span, std::int64_t grid_w, int fold) {
    std::int64_t y = span.first / grid_w, x = span.first % grid_w;
    for (std::int64_t t = 0; t < span.count; ++t) {
      offset[t] = span.n * image.stride_n + y * fold * image.stride_h + x * fold * image.stride_w;
      if (++x == grid_w) {
        x = 0;
        ++y;
      }
    }
    contiguous = true;
    for (std::int64_t t = 1; t < span.count; ++t) contiguous &= offset[t] == offset[0] + t;
  }
};

// Calls visit(d, delta) for every folded channel d = (c * fold + i) * fold + j (the order of pixel_unshuffle).
template <typename Visit>
inline void for_channels(const Image& image, int fold, Visit visit) {
  std::int64_t d = 0;
  for (std::int64_t c = 0; c < image.c; ++c)
    for (int i = 0; i < fold; ++i)
      for (int j = 0; j < fold; ++j) visit(d++, c * image.stride_c + i * image.stride_h + j * image.stride_w);
}

template <typename T>
void load_typed(const Image& image, const Places& places, std::int64_t count, int fold, float* rows) {
  const T* data = static_cast<const T*>(image.data);
  if (!places.contiguous && image.stride_c == 1) {
    for (std::int64_t t = 0; t < count; ++t) {
      const T* here = data + places.offset[t];
      for_channels(image, fold, [&](std::int64_t d, std::int64_t delta) { rows[d * kTile + t] = read(here[delta]); });
    }
    return;
  }
  for_channels(image, fold, [&](std::int64_t d, std::int64_t delta) {
    float* row = rows + d * kTile;
    if (places.contiguous) {
      const T* here = data + places.offset[0] + delta;
      for (std::int64_t t = 0; t < count; ++t) row[t] = read(here[t]);
    } else {
      for (std::int64_t t = 0; t < count; ++t) row[t] = read(data[places.offset[t] + delta]);
    }
  });
}

template <typename T>
void store_typed(const Image& image, const Places& places, std::int64_t count, int fold, const float* rows) {
  T* data = static_cast<T*>(image.data);
  if (!places.contiguous && image.stride_c == 1) {
    for (std::int64_t t = 0; t < count; ++t) {
      T* here = data + places.offset[t];
      for_channels(image, fold, [&](std::int64_t d, std::int64_t delta) { write(here[delta], rows[d * kTile + t]); });
    }
    return;
  }
  for_channels(image, fold, [&](std::int64_t d, std::int64_t delta) {
    const float* row = rows + d * kTile;
    if (places.contiguous) {
      T* here = data + places.offset[0] + delta;
      for (std::int64_t t = 0; t < count; ++t) write(here[t], row[t]);
    } else {
      for (std::int64_t t = 0; t < count; ++t) write(data[places.offset[t] + delta], row[t]);
    }
  });
}

inline void load(const Image& image, const Span& span, std::int64_t grid_w, int fold, float* rows) {
  const Places places(image, span, grid_w, fold);
  switch (image.type) {
    case Type::f32:
      return load_typed<float>(image, places, span.count, fold, rows);
    case Type::f16:
      return load_typed<Half>(image, places, span.count, fold, rows);
    case Type::bf16:
      return load_typed<Bfloat>(image, places, span.count, fold, rows);
  }
}

inline void store(const Image& image, const Span& span, std::int64_t grid_w, int fold, const float* rows) {
  const Places places(image, span, grid_w, fold);
  switch (image.type) {
    case Type::f32:
      return store_typed<float>(image, places, span.count, fold, rows);
    case Type::f16:
      return store_typed<Half>(image, places, span.count, fold, rows);
    case Type::bf16:
      return store_typed<Bfloat>(image, places, span.count, fold, rows);
  }
}

// Runs work(span, scratch) over all tiles of n samples of h x w positions; `scratch` has `rows` tile rows of floats.
template <typename Work>
void for_tiles(std::int64_t n, std::int64_t h, std::int64_t w, std::int64_t rows, int threads, Work work) {
  const std::int64_t area = h * w, tiles = (area + kTile - 1) / kTile, total = n * tiles;
  if (n * area * rows < kParallelGrain) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> scratch(static_cast<std::size_t>(rows * kTile), 0.0f);
#pragma omp for schedule(static)
    for (std::int64_t index = 0; index < total; ++index) {
      const std::int64_t first = (index % tiles) * kTile;
      work(Span{index / tiles, first, std::min(kTile, area - first)}, scratch.data());
    }
  }
}

}  // namespace ppcmi

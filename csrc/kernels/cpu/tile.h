// A tile: up to `kTile` positions of one sample as float rows [channel][kTile]. Tiles of contiguous planes are read and
// written where they lie; everything else (channels last, folding, crops, the rest of a plane) is staged here.
#pragma once

#include "plan.h"
#include "vec.h"

namespace ppcmi {
namespace PPCMI_ISA {

constexpr std::int64_t kBlocks = kTile / kLanes;

// A tile, or its blocks from `first` on, between source and result: [block][dim][lanes].
struct Rows {
  float* data;
  std::int64_t dim;
  std::int64_t first;

  PPCMI_INLINE float* at(const Rows& rows, std::int64_t d, int b) {
    return rows.data + ((b - rows.first) * rows.dim + d) * kLanes;
  }
};

// `count` positions of the grid from flat position `first` on, in sample `n`.
struct Span {
  std::int64_t n, first, count;
  int blocks;  // vectors that hold them
};

PPCMI_INLINE Span span_of(std::int64_t tile, std::int64_t area) {
  const std::int64_t tiles = (area + kTile - 1) / kTile, first = (tile % tiles) * kTile;
  const std::int64_t count = area - first < kTile ? area - first : kTile;
  return {tile / tiles, first, count, static_cast<int>((count + kLanes - 1) / kLanes)};
}

// Whether the span's positions lie one after the other in every channel, and fill whole vectors.
PPCMI_INLINE bool direct(const Image& image, const Span& span, std::int64_t grid_w, int fold) {
  return fold == 1 && image.stride_w == 1 && (image.stride_h == grid_w || image.h == 1) && span.count % kLanes == 0;
}

PPCMI_INLINE std::int64_t start_of(const Image& image, const Span& span) {
  return span.n * image.stride_n + span.first * image.stride_w;
}

// Offset of each position in an image whose h and w are `fold` times those of the grid.
struct Places {
  std::int64_t offset[kTile];

  PPCMI_INLINE void fill(Places& places, const Image& image, const Span& span, std::int64_t grid_w, int fold) {
    std::int64_t y = span.first / grid_w, x = span.first % grid_w;
    for (std::int64_t t = 0; t < span.count; ++t) {
      places.offset[t] = span.n * image.stride_n + y * fold * image.stride_h + x * fold * image.stride_w;
      if (++x == grid_w) {
        x = 0;
        ++y;
      }
    }
  }
};

// Staging of channels [from, end) of one of the fold^2 places within a folded position; `rows` is its first row and
// `step` the distance of its rows. One element after the other, the vectors only for the conversion.
template <typename T>
void stage_scattered(const T* data, const Image& image, const Places& places, const Span& span, std::int64_t from,
                     std::int64_t step, float* rows) {
  for (std::int64_t c = from; c < image.c; ++c) {
    const T* channel = data + c * image.stride_c;
    T line[kTile] = {};
    for (std::int64_t t = 0; t < span.count; ++t) line[t] = channel[places.offset[t]];
    for (int b = 0; b < span.blocks; ++b) store(rows + c * step + b * kLanes, load(line + b * kLanes));
  }
}

template <typename T>
void unstage_scattered(T* data, const Image& image, const Places& places, const Span& span, std::int64_t from,
                       std::int64_t step, const float* rows) {
  for (std::int64_t c = from; c < image.c; ++c) {
    T* channel = data + c * image.stride_c;
    T line[kTile];
    for (int b = 0; b < span.blocks; ++b) store(line + b * kLanes, load(rows + c * step + b * kLanes));
    for (std::int64_t t = 0; t < span.count; ++t) channel[places.offset[t]] = line[t];
  }
}

// Squares of kLanes channels by kLanes positions, turned in registers; the positions past the last repeat it. Returns
// the channels done.
template <typename T>
std::int64_t stage_channels_last(const T* data, const Image& image, const Places& places, const Span& span,
                                 std::int64_t step, float* rows) {
  const std::int64_t whole = image.c / kLanes * kLanes;
  for (int b = 0; b < span.blocks; ++b)
    for (std::int64_t c = 0; c < whole; c += kLanes) {
      Vec square[kLanes];
      PPCMI_UNROLL for (int i = 0; i < kLanes; ++i) {
        const std::int64_t t = b * kLanes + i < span.count ? b * kLanes + i : span.count - 1;
        square[i] = load(data + places.offset[t] + c);
      }
      transpose(square);
      PPCMI_UNROLL for (int i = 0; i < kLanes; ++i) store(rows + (c + i) * step + b * kLanes, square[i]);
    }
  return whole;
}

template <typename T>
std::int64_t unstage_channels_last(T* data, const Image& image, const Places& places, const Span& span,
                                   std::int64_t step, const float* rows) {
  const std::int64_t whole = image.c / kLanes * kLanes;
  for (int b = 0; b < span.blocks; ++b)
    for (std::int64_t c = 0; c < whole; c += kLanes) {
      Vec square[kLanes];
      PPCMI_UNROLL for (int i = 0; i < kLanes; ++i) square[i] = load(rows + (c + i) * step + b * kLanes);
      transpose(square);
      PPCMI_UNROLL for (int i = 0; i < kLanes; ++i) if (b * kLanes + i < span.count)
          store(data + places.offset[b * kLanes + i] + c, square[i]);
    }
  return whole;
}

// All fold^2 * image.c channels, d = (c * fold + i) * fold + j being pixel (y * fold + i, x * fold + j) of channel c.
template <typename T>
void stage(const Image& image, const Span& span, std::int64_t grid_w, int fold, float* rows) {
  Places places;
  Places::fill(places, image, span, grid_w, fold);
  const std::int64_t step = fold * fold * kTile;
  for (int i = 0; i < fold; ++i)
    for (int j = 0; j < fold; ++j) {
      const T* data = static_cast<const T*>(image.data) + i * image.stride_h + j * image.stride_w;
      float* first = rows + (i * fold + j) * kTile;
      const std::int64_t done = image.stride_c == 1 ? stage_channels_last(data, image, places, span, step, first) : 0;
      stage_scattered(data, image, places, span, done, step, first);
    }
}

template <typename T>
void unstage(const Image& image, const Span& span, std::int64_t grid_w, int fold, const float* rows) {
  Places places;
  Places::fill(places, image, span, grid_w, fold);
  const std::int64_t step = fold * fold * kTile;
  for (int i = 0; i < fold; ++i)
    for (int j = 0; j < fold; ++j) {
      T* data = static_cast<T*>(image.data) + i * image.stride_h + j * image.stride_w;
      const float* first = rows + (i * fold + j) * kTile;
      const std::int64_t done = image.stride_c == 1 ? unstage_channels_last(data, image, places, span, step, first) : 0;
      unstage_scattered(data, image, places, span, done, step, first);
    }
}

// Calls work with a null pointer of the image's type.
template <typename Work>
PPCMI_INLINE void with_type(Type type, const Work& work) {
  switch (type) {
    case Type::f32:
      return work(static_cast<float*>(nullptr));
    case Type::f16:
      return work(static_cast<Half*>(nullptr));
    case Type::bf16:
      return work(static_cast<Bfloat*>(nullptr));
  }
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

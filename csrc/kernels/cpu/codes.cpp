#include "codes.h"

#include <cmath>

namespace ppcmi {

namespace {

void quantize_by_table(const float* values, const float* thresholds, int count, std::int32_t* codes) {
  for (std::int64_t t = 0; t < kTile; ++t) codes[t] = 0;
  for (int k = 0; k < count; ++k)
    for (std::int64_t t = 0; t < kTile; ++t) codes[t] += values[t] < thresholds[k] ? 0 : 1;
}

// Equal steps need no search. The product may round across a threshold that the value touches, one code at most.
void quantize_uniformly(const float* values, const float* thresholds, int count, std::int32_t* codes) {
  const float inverse = static_cast<float>(count - 1) / (thresholds[count - 1] - thresholds[0]);
  const float shift = 0.5f * static_cast<float>(count + 1);
  const float top = static_cast<float>(count);
  for (std::int64_t t = 0; t < kTile; ++t) {
    const float place = values[t] * inverse + shift;
    const float bounded = place < top ? (place > 0.0f ? place : 0.0f) : top;
    codes[t] = static_cast<std::int32_t>(place == place ? bounded : top);
  }
}

}  // namespace

void store_codes(const Image& codes, const Span& span, const Codebook& thresholds, const float* rows) {
  const int bits = thresholds.bits, per_byte = 8 / bits, count = (1 << bits) - 1;
  const Places places(codes, span, codes.w, 1);
  auto* data = static_cast<std::uint8_t*>(codes.data);
  std::int32_t packed[kTile], part[kTile];
  for (std::int64_t j = 0; j < codes.c; ++j) {
    std::fill(packed, packed + kTile, 0);
    for (int i = 0; i < per_byte; ++i) {
      const float* row = rows + (j * per_byte + i) * kTile;
      if (bits == 8) {
        quantize_uniformly(row, thresholds.table, count, part);
      } else {
        quantize_by_table(row, thresholds.table, count, part);
      }
      for (std::int64_t t = 0; t < kTile; ++t) packed[t] |= part[t] << (i * bits);
    }
    for (std::int64_t t = 0; t < span.count; ++t)
      data[places.offset[t] + j * codes.stride_c] = static_cast<std::uint8_t>(packed[t]);
  }
}

void load_codes(const Image& codes, const Span& span, const Codebook& levels, float* rows) {
  const int bits = levels.bits, per_byte = 8 / bits, mask = (1 << bits) - 1;
  const Places places(codes, span, codes.w, 1);
  const auto* data = static_cast<const std::uint8_t*>(codes.data);
  for (std::int64_t j = 0; j < codes.c; ++j)
    for (std::int64_t t = 0; t < span.count; ++t) {
      const int byte = data[places.offset[t] + j * codes.stride_c];
      for (int i = 0; i < per_byte; ++i)
        rows[(j * per_byte + i) * kTile + t] = levels.table[(byte >> (i * bits)) & mask];
    }
}

}  // namespace ppcmi

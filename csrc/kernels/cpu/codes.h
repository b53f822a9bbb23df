// Packed codes of a tile; byte row j holds channels j p .. j p + p - 1, the first lowest.
//
// Every codebook is one multiply-add, a truncation and, below 8 bits, a table of bytes: the thresholds lie on a grid of
// 256 cells, so no search is needed and 4 bits take no longer than 8.
#pragma once

#include "tile.h"

namespace ppcmi {
namespace PPCMI_ISA {

constexpr std::int64_t kByteLanes = 4 * kLanes;

typedef std::uint8_t Line __attribute__((vector_size(4 * PPCMI_LANES)));

// kByteLanes cells to codes below 16.
PPCMI_INLINE Line look_up(const Cells& cells, const std::uint8_t* from) {
#if defined(__AVX512VBMI__)
  const __m512i index = _mm512_loadu_si512(from);
  const __m512i low =
      _mm512_permutex2var_epi8(_mm512_loadu_si512(cells.table), index, _mm512_loadu_si512(cells.table + 64));
  const __m512i high =
      _mm512_permutex2var_epi8(_mm512_loadu_si512(cells.table + 128), index, _mm512_loadu_si512(cells.table + 192));
  return (Line)_mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
#elif defined(__AVX2__)
  const auto twice = [](const std::uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  };
  const __m256i base = twice(cells.base), below0 = twice(cells.below[0]), below1 = twice(cells.below[1]);
  const __m256i one = _mm256_set1_epi8(1);
  const __m256i cell = load_raw<__m256i>(from);
  const __m256i group = _mm256_and_si256(_mm256_srli_epi16(cell, 4), _mm256_set1_epi8(15));
  const __m256i past0 = _mm256_subs_epu8(cell, _mm256_shuffle_epi8(below0, group));
  const __m256i past1 = _mm256_subs_epu8(cell, _mm256_shuffle_epi8(below1, group));
  const __m256i ends = _mm256_add_epi8(_mm256_min_epu8(past0, one), _mm256_min_epu8(past1, one));
  return (Line)_mm256_add_epi8(_mm256_shuffle_epi8(base, group), ends);
#else
  Line codes;
  for (std::int64_t t = 0; t < kByteLanes; ++t) codes[t] = cells.table[from[t]];
  return codes;
#endif
}

// Rows of bytes, `stride` apart.
struct ByteRows {
  std::uint8_t* data;
  std::int64_t stride;
};

template <int kBits>
PPCMI_INLINE void pack_bits(const Cells& cells, std::int64_t channels, const std::uint8_t* from, const ByteRows& to) {
  constexpr int kPerByte = 8 / kBits;
  for (std::int64_t j = 0; j < channels / kPerByte; ++j)
    for (std::int64_t t = 0; t < kTile; t += kByteLanes) {
      Line packed = look_up(cells, from + j * kPerByte * kTile + t);
      PPCMI_UNROLL for (int i = 1; i < kPerByte; ++i) packed |= look_up(cells, from + (j * kPerByte + i) * kTile + t)
                                                                << (i * kBits);
      store_raw(to.data + j * to.stride + t, packed);
    }
}

// Cells of all channels to packed bytes; `to` may be the cells' own rows. With 8 bits cells are codes and stay.
PPCMI_INLINE void pack(const Cells& cells, std::int64_t channels, const std::uint8_t* from, const ByteRows& to) {
  if (cells.bits == 4) pack_bits<4>(cells, channels, from, to);
  if (cells.bits == 2) pack_bits<2>(cells, channels, from, to);
}

typedef std::uint8_t Line16 __attribute__((vector_size(16)));

// rows[i] byte j becomes rows[j] byte i: four rounds of interleaving the first half of the rows with the second.
PPCMI_INLINE void transpose_bytes(Line16 (&rows)[16]) {
  PPCMI_UNROLL for (int round = 0; round < 4; ++round) {
    Line16 next[16];
    PPCMI_UNROLL for (int i = 0; i < 8; ++i) {
      next[2 * i] =
          __builtin_shufflevector(rows[i], rows[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * i + 1] =
          __builtin_shufflevector(rows[i], rows[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    PPCMI_UNROLL for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
}

// The span's rows where they lie in an image that is `direct`.
PPCMI_INLINE ByteRows byte_rows(const Image& codes, const Span& span) {
  return {static_cast<std::uint8_t*>(codes.data) + start_of(codes, span), codes.stride_c};
}

PPCMI_INLINE void write_codes(const Image& codes, const Span& span, const std::uint8_t* rows) {
  auto* data = static_cast<std::uint8_t*>(codes.data);
  if (direct(codes, span, codes.w, 1)) {
    const ByteRows to = byte_rows(codes, span);
    for (std::int64_t c = 0; c < codes.c; ++c) std::memcpy(to.data + c * to.stride, rows + c * kTile, span.count);
    return;
  }
  Places places;
  Places::fill(places, codes, span, codes.w, 1);
  std::int64_t done = 0;
  if (codes.stride_c == 1) {
    for (; done + 16 <= codes.c; done += 16)
      for (std::int64_t t = 0; t < span.count; t += 16) {
        Line16 square[16];
        PPCMI_UNROLL for (int i = 0; i < 16; ++i) square[i] = load_raw<Line16>(rows + (done + i) * kTile + t);
        transpose_bytes(square);
        PPCMI_UNROLL for (int i = 0; i < 16; ++i) if (t + i < span.count)
            store_raw(data + places.offset[t + i] + done, square[i]);
      }
  }
  for (; done < codes.c; ++done)
    for (std::int64_t t = 0; t < span.count; ++t)
      data[places.offset[t] + done * codes.stride_c] = rows[done * kTile + t];
}

// Where the bytes of the span's positions can be read as rows: in the image itself, or copied to `cells`.
PPCMI_INLINE ByteRows read_codes(const Image& codes, const Span& span, std::uint8_t* cells) {
  const auto* data = static_cast<const std::uint8_t*>(codes.data);
  if (direct(codes, span, codes.w, 1)) return byte_rows(codes, span);
  Places places;
  Places::fill(places, codes, span, codes.w, 1);
  std::int64_t done = 0;
  if (codes.stride_c == 1) {
    for (; done + 16 <= codes.c; done += 16)
      for (std::int64_t t = 0; t < span.count; t += 16) {
        Line16 square[16];
        PPCMI_UNROLL for (int i = 0; i < 16; ++i) {
          const std::int64_t position = t + i < span.count ? t + i : span.count - 1;
          square[i] = load_raw<Line16>(data + places.offset[position] + done);
        }
        transpose_bytes(square);
        PPCMI_UNROLL for (int i = 0; i < 16; ++i) store_raw(cells + (done + i) * kTile + t, square[i]);
      }
  }
  for (; done < codes.c; ++done) {
    std::uint8_t* line = cells + done * kTile;
    std::memset(line, 0, kTile);
    for (std::int64_t t = 0; t < span.count; ++t) line[t] = data[places.offset[t] + done * codes.stride_c];
  }
  return {cells, kTile};
}

// The levels of the codes as a source of rows.
template <int kBits>
struct LevelSource {
  static constexpr bool kPlain = false;
  ByteRows bytes;
  Levels levels;
  const std::int32_t* place;
  const float* offset;

  Vec operator()(std::int64_t d, int b) const {
    const std::int64_t outside = place[d];
    constexpr int kPerByte = 8 / kBits;
    const std::uint8_t* line = bytes.data + outside / kPerByte * bytes.stride + b * kLanes;
    const Ints packed = load_ints(line);
    if (kBits == 8) return __builtin_convertvector(packed, Vec) * levels.step + (levels.first - offset[outside]);
    const int shift = static_cast<int>(outside % kPerByte) * kBits;
    return Table16::at({levels.table}, (packed >> shift) & ((1 << kBits) - 1)) - offset[outside];
  }
};

// Calls work with the source of the span's levels.
template <typename Work>
PPCMI_INLINE void with_levels(const Call& call, const Span& span, const Scratch& scratch, const Work& work) {
  const ByteRows bytes = read_codes(call.source, span, scratch.cells);
  const Plan& plan = call.plan;
  switch (call.levels.bits) {
    case 8:
      return work(LevelSource<8>{bytes, call.levels, plan.source_place, plan.source_offset});
    case 4:
      return work(LevelSource<4>{bytes, call.levels, plan.source_place, plan.source_offset});
    case 2:
      return work(LevelSource<2>{bytes, call.levels, plan.source_place, plan.source_offset});
  }
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

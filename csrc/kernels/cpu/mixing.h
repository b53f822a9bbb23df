// Mixing of a tile, shared by the operators. Between the steps of a plan the rows lie [block][dim][lanes]: the steps
// after the first then work on dim * lanes floats at a time (16 KiB at 256 channels and 16 lanes).
//
// Normalization, the scale of the Hadamard rounds and the offset are all applied to the result, in one multiply-add
// an element, because mixing is linear; the sums of squares come with the first step. Where a round begins with the
// butterflies that the one before it ended with, one step does both: R rounds of up to radix^2 channels are R + 1
// passes over the tile.
#pragma once

#include "product.h"

namespace ppcmi {
namespace PPCMI_ISA {

// Where the rows of a step go, one vector after the other. With kWhole a sink also takes a row of all blocks at
// once; with kHalves half a tile may leave before the other half is read.
struct RowSink {
  static constexpr bool kWhole = false;
  Rows rows;
  void operator()(std::int64_t d, int b, Vec value) const { store(Rows::at(rows, d, b), value); }
};

// The source's channels as they lie outside, `stride` elements apart.
template <typename T>
struct FloatSource {
  static constexpr bool kPlain = false;
  const T* data;
  std::int64_t stride;
  const std::int32_t* place;
  const float* offset;

  Vec operator()(std::int64_t d, int b) const {
    const std::int64_t outside = place[d];
    return load(data + outside * stride + b * kLanes) - offset[outside];
  }
};

// Without offset and in order: what every forward transform reads.
template <typename T>
struct PlainSource {
  static constexpr bool kPlain = true;
  const T* data;
  std::int64_t stride;

  // A tile takes a short piece of each plane, which no hardware prefetcher follows; two tiles ahead, a fifth of the
  // time where the image is not in the second cache.
  Vec operator()(std::int64_t d, int b) const {
    const T* from = data + d * stride + b * kLanes;
    __builtin_prefetch(from + 2 * kTile, 0, 2);
    return load(from);
  }
};

// Reads the source into rows as it is; with kSquares, sums[block] gets the sum of their squares, taken in groups of
// rows so that the rounding error grows with the number of groups and not with dim.
template <bool kSquares, int kWide, typename Source>
PPCMI_INLINE void load_blocks(const Source source, const Rows rows, int from_block, Vec* sums) {
  constexpr std::int64_t kGroup = 32;
  Vec total[kWide] = {};
  for (std::int64_t from = 0; from < rows.dim; from += kGroup) {
    const std::int64_t end = from + kGroup < rows.dim ? from + kGroup : rows.dim;
    Vec sum[kWide] = {};
    for (std::int64_t d = from; d < end; ++d) PPCMI_UNROLL for (int w = 0; w < kWide; ++w) {
        const Vec value = source(d, from_block + w);
        store(Rows::at(rows, d, from_block + w), value);
        if (kSquares) sum[w] = sum[w] + value * value;
      }
    PPCMI_UNROLL for (int w = 0; w < kWide; ++w) total[w] = total[w] + sum[w];
  }
  PPCMI_UNROLL for (int w = 0; w < kWide; ++w) sums[from_block + w] = total[w];
}

template <bool kSquares, typename Source>
PPCMI_INLINE void load_rows(int from_block, int end_block, const Source& source, const Rows& rows, Vec* sums) {
  int b = from_block;
  for (; b + 4 <= end_block; b += 4) load_blocks<kSquares, 4>(source, rows, b, sums);
  for (; b < end_block; ++b) load_blocks<kSquares, 1>(source, rows, b, sums);
}

// Walsh-Hadamard stages within 2^kBits rows held in registers, from pairs kFrom rows apart on.
template <int kBits, int kFrom>
PPCMI_INLINE void stages(Vec (&v)[1 << kBits]) {
  PPCMI_UNROLL for (int span = kFrom; span < 1 << kBits; span *= 2)
      PPCMI_UNROLL for (int k = 0; k < 1 << kBits; ++k) if (!(k & span)) {
    const Vec a = v[k], b = v[k | span];
    v[k] = a + b;
    v[k | span] = a - b;
  }
}

// The same after signs, which cost half an operation an element: they join the first stage's multiply-adds.
template <int kBits>
PPCMI_INLINE void signed_stages(Vec (&v)[1 << kBits], const float* signs, std::int64_t stride) {
  if constexpr (kBits == 0) {
    v[0] = v[0] * signs[0];
  } else {
    PPCMI_UNROLL for (int k = 0; k < 1 << kBits; k += 2) {
      const Vec a = v[k] * signs[k * stride], b = v[k + 1];
      const Vec sign = broadcast(signs[(k + 1) * stride]);
      v[k] = a + b * sign;
      v[k + 1] = a - b * sign;
    }
    stages<kBits, 2>(v);
  }
}

// The step's rows from `first` on in a block, after its first turn.
template <int kBits, bool kSigned>
PPCMI_INLINE void turned(Vec (&v)[1 << kBits], const Step& step, std::int64_t first, int b, std::int64_t stride,
                         const Rows& rows) {
  const float* from = Rows::at(rows, first, b);
  PPCMI_UNROLL for (int k = 0; k < 1 << kBits; ++k) v[k] = load(from + k * stride * kLanes);
  if (kSigned) {
    signed_stages<kBits>(v, step.signs[0] + first, stride);
  } else {
    stages<kBits, 1>(v);
  }
}

// A step's butterflies on full tiles, for a sink that takes a row of all blocks at once. A loop of its own: within the
// one below the compiler spills, and every store more is one that waits behind those of the result.
template <int kBits, bool kSigned, typename Sink>
PPCMI_INLINE void whole_rows(const Step& step, std::int64_t stride, const Rows& rows, const Sink& sink) {
  constexpr int kRows = 1 << kBits;
  for (std::int64_t outer = 0; outer < rows.dim; outer += stride * kRows)
    for (std::int64_t first = outer; first < outer + stride; ++first) {
      Vec whole[kRows][kBlocks];
      PPCMI_UNROLL for (int b = 0; b < kBlocks; ++b) {
        Vec v[kRows];
        turned<kBits, kSigned>(v, step, first, b, stride, rows);
        PPCMI_UNROLL for (int k = 0; k < kRows; ++k) whole[k][b] = v[k];
      }
      PPCMI_UNROLL for (int k = 0; k < kRows; ++k) sink(first + k * stride, whole[k]);
    }
}

// A step's butterflies on rows 2^kLow apart (kLow < 0: 2^step.low), which a constant turns into fixed addresses.
template <int kBits, int kLow, bool kSigned, bool kTwice, typename Sink>
void butterflies(const Step step, int from_block, int end_block, const Rows rows, const Sink sink) {
  constexpr int kRows = 1 << kBits;
  const std::int64_t stride = std::int64_t{1} << (kLow < 0 ? step.low : kLow);
  constexpr bool kFit = kRows * kBlocks <= 1 << kRadixBits;  // what registers hold beside temporaries
  if constexpr (Sink::kWhole && kFit && !kTwice)
    if (end_block - from_block == kBlocks) return whole_rows<kBits, kSigned>(step, stride, rows, sink);
  for (std::int64_t outer = 0; outer < rows.dim; outer += stride * kRows)
    for (std::int64_t first = outer; first < outer + stride; ++first)
      for (int b = from_block; b < end_block; ++b) {
        Vec v[kRows];
        turned<kBits, kSigned>(v, step, first, b, stride, rows);
        if (kTwice) signed_stages<kBits>(v, step.signs[1] + first, stride);
        PPCMI_UNROLL for (int k = 0; k < kRows; ++k) sink(first + k * stride, b, v[k]);
      }
}

// The first step of a forward transform, on kWide blocks straight from the source.
template <bool kSquares, int kWide, int kBits, int kLow, typename Source>
void first_butterflies(const Step step, int from_block, const Rows rows, const Source source, Vec* sums) {
  constexpr int kRows = 1 << kBits;
  constexpr std::int64_t kStride = std::int64_t{1} << kLow;
  Vec total[kWide] = {};
  for (std::int64_t outer = 0; outer < rows.dim; outer += kStride * kRows)
    for (std::int64_t first = outer; first < outer + kStride; ++first) PPCMI_UNROLL for (int w = 0; w < kWide; ++w) {
        Vec v[kRows];
        PPCMI_UNROLL for (int k = 0; k < kRows; ++k) v[k] = source(first + k * kStride, from_block + w);
        if (kSquares) {
          Vec even = v[0] * v[0], odd = v[1] * v[1];
          PPCMI_UNROLL for (int k = 2; k < kRows; k += 2) {
            even = even + v[k] * v[k];
            odd = odd + v[k + 1] * v[k + 1];
          }
          total[w] = total[w] + (even + odd);
        }
        signed_stages<kBits>(v, step.signs[0] + first, kStride);
        float* to = Rows::at(rows, first, from_block + w);
        PPCMI_UNROLL for (int k = 0; k < kRows; ++k) store(to + k * kStride * kLanes, v[k]);
      }
  PPCMI_UNROLL for (int w = 0; w < kWide; ++w) sums[from_block + w] = total[w];
}

template <bool kSquares, int kWide, typename Source>
void first_step(const Step& step, int b, const Rows& rows, const Source& source, Vec* sums) {
  if (step.bits == 1) first_butterflies<kSquares, kWide, 1, kRadixBits>(step, b, rows, source, sums);
  if (step.bits == 2) first_butterflies<kSquares, kWide, 2, kRadixBits>(step, b, rows, source, sums);
  if (step.bits == 3) first_butterflies<kSquares, kWide, 3, kRadixBits>(step, b, rows, source, sums);
  if (step.bits == 4) first_butterflies<kSquares, kWide, kRadixBits, kRadixBits>(step, b, rows, source, sums);
}

// Reads the source, through the first step where that is the usual one: returns the steps done. Saves a sixth of the
// whole call at 64 channels.
template <bool kSquares, typename Source>
int load_through(const Plan& plan, int from_block, int end_block, const Rows& rows, const Source& source, Vec* sums) {
  if constexpr (Source::kPlain) {
    const Step* step = plan.steps;
    const bool usual = plan.step_count > 1 && step->turns == 1 && step->signs[0] && step->low == kRadixBits;
    if (usual && (end_block - from_block) % 2 == 0) {
      int b = from_block;
      for (; b + 4 <= end_block; b += 4) first_step<kSquares, 4>(*step, b, rows, source, sums);
      for (; b < end_block; b += 2) first_step<kSquares, 2>(*step, b, rows, source, sums);
      return 1;
    }
  }
  load_rows<kSquares>(from_block, end_block, source, rows, sums);
  return 0;
}

template <int kBits, int kLow, typename Sink>
void butterflies_signed(const Step& step, int from_block, int end_block, const Rows& rows, const Sink& sink) {
  if (step.turns == 2) return butterflies<kBits, kLow, false, true>(step, from_block, end_block, rows, sink);
  if (step.signs[0]) return butterflies<kBits, kLow, true, false>(step, from_block, end_block, rows, sink);
  return butterflies<kBits, kLow, false, false>(step, from_block, end_block, rows, sink);
}

template <int kBits, typename Sink>
void butterflies_apart(const Step& step, int from_block, int end_block, const Rows& rows, const Sink& sink) {
  switch (step.low) {
    case 0:
      return butterflies_signed<kBits, 0>(step, from_block, end_block, rows, sink);
    case kRadixBits:
      return butterflies_signed<kBits, kRadixBits>(step, from_block, end_block, rows, sink);
    case 2 * kRadixBits:
      return butterflies_signed<kBits, 2 * kRadixBits>(step, from_block, end_block, rows, sink);
    default:
      return butterflies_signed<kBits, -1>(step, from_block, end_block, rows, sink);
  }
}

template <typename Sink>
void butterflies_of(const Step& step, int from_block, int end_block, const Rows& rows, const Sink& sink) {
  switch (step.bits) {
    case 0:
      return butterflies_signed<0, 0>(step, from_block, end_block, rows, sink);
    case 1:
      return butterflies_apart<1>(step, from_block, end_block, rows, sink);
    case 2:
      return butterflies_apart<2>(step, from_block, end_block, rows, sink);
    case 3:
      return butterflies_apart<3>(step, from_block, end_block, rows, sink);
#if PPCMI_RADIX_BITS > 3
    case 4:
      return butterflies_apart<4>(step, from_block, end_block, rows, sink);
#endif
  }
}

// Rows seen as [odd][power]: mixes the `odd` runs, after the signs.
PPCMI_INLINE void mix_runs(const Step& step, std::int64_t odd, int b, const Rows& rows) {
  const std::int64_t power = rows.dim / odd;
  Vec line[kMaxOdd];
  for (std::int64_t p = 0; p < power; ++p) {
    for (std::int64_t a = 0; a < odd; ++a) {
      const std::int64_t d = a * power + p;
      line[a] = load(Rows::at(rows, d, b)) * (step.signs[0] ? step.signs[0][d] : 1.0f);
    }
    for (std::int64_t a = 0; a < odd; ++a) {
      const float* weights = step.transposed ? step.factor + a : step.factor + a * odd;
      const std::int64_t next = step.transposed ? odd : 1;
      Vec sum = line[0] * weights[0];
      for (std::int64_t c = 1; c < odd; ++c) sum = sum + line[c] * weights[c * next];
      store(Rows::at(rows, a * power + p, b), sum);
    }
  }
}

// Per position, what the result is multiplied by: the plan's scale, over the root mean square of the source's vector.
PPCMI_INLINE void gains_of(const Plan& plan, int from_block, int end_block, Vec* sums) {
  const Vec scale = broadcast(plan.scale);
  for (int b = from_block; b < end_block; ++b) {
    const Vec mean = sums[b] * (1.0f / static_cast<float>(plan.dim)) + 1e-12f;
    sums[b] = plan.normalize ? scale / square_root(mean) : scale;
  }
}

template <typename Sink>
struct Finish {
  static constexpr bool kWhole = Sink::kWhole;
  Sink sink;
  const Vec* gains;

  void operator()(std::int64_t d, int b, Vec value) const { sink(d, b, value, gains[b]); }
  void operator()(std::int64_t d, const Vec (&values)[kBlocks]) const { sink(d, values, gains); }
};

// Blocks that go through the steps together: all of a tile, unless only half of them fit into 32 KB, the smallest first
// cache meant, which is at 129 to 256 channels. Beyond, not even these do, and wide pieces of the source matter more.
PPCMI_INLINE int blocks_together(std::int64_t dim) {
  constexpr std::int64_t kCache = 32 << 10, kRow = kTile * static_cast<std::int64_t>(sizeof(float));
  return static_cast<int>(dim * kRow > kCache && dim * kRow / 2 <= kCache ? kBlocks / 2 : kBlocks);
}

// Runs a plan from source to sink; sink(d, b, value, gain) gets the value before gain or factor, and offset.
template <bool kSquares, typename Source, typename Sink>
void mix(const Plan& plan, int blocks, float* scratch, const Source& source, const Sink& sink) {
  Vec gains[kBlocks] = {};
  const Finish<Sink> finish{sink, gains};
  const int together = plan.step_count == 0 ? blocks : blocks_together(plan.dim);
  for (int from = 0; from < blocks; from += together) {
    const int end = from + together < blocks ? from + together : blocks;
    // Halves that leave by themselves follow each other through the same rows, which the first cache then keeps.
    const Rows rows{scratch, plan.dim, Sink::kHalves ? from : 0};
    const int begin = load_through<kSquares>(plan, from, end, rows, source, gains);
    gains_of(plan, from, end, gains);
    if (plan.step_count == 0) return product(plan.matrix, plan.transposed, plan.outputs, blocks, rows, finish);
    // A block after the other keeps a wide tile's rows in the first cache.
    for (int b = from; b < end; ++b)
      for (int s = begin; s + 1 < plan.step_count; ++s) {
        if (plan.steps[s].factor) {
          mix_runs(plan.steps[s], plan.odd, b, rows);
        } else {
          butterflies_of(plan.steps[s], b, b + 1, rows, RowSink{rows});
        }
      }
    // The last step takes all blocks of a row together, so that its result is written in whole cache lines (a third to
    // half of the time of `klt` otherwise).
    const int first = Sink::kHalves ? from : 0;
    if (Sink::kHalves || end == blocks) butterflies_of(plan.steps[plan.step_count - 1], first, end, rows, finish);
  }
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

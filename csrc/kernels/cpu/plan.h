// What a call does, worked out once before its tiles: plain data for the kernels of every instruction set.
#pragma once

#include "../ops.h"

namespace ppcmi {

constexpr std::int64_t kTile = 64;  // positions; 16 of them took up to 3.3 times as long (a cache line a row, and TLB)
constexpr std::int64_t kMaxOdd = 63;  // of a structured mixing; checked where the material is made

// One pass over a tile's rows. Butterflies: radix 2^bits on rows 2^low apart, row d first multiplied by signs[0][d]
// (null: not); with two turns, without signs[0], again after signs[1]. Factor (not null): mixes the `odd` runs of rows
// by it or its transpose after signs[0].
struct Step {
  int low = 0, bits = 0, turns = 0;
  const float* signs[2] = {};
  const float* factor = nullptr;
  bool transposed = false;
};

// Mixing of `dim` rows by steps, or without any by the product with `matrix` [outputs, dim] (or its transpose).
// The last step, which is one of butterflies, writes the result.
struct Plan {
  std::int64_t dim, outputs, odd;
  int step_count;
  const Step* steps;
  const float* matrix;
  bool transposed;
  const std::int32_t* source_place;  // [dim], where row d of the steps lies in the source
  const std::int32_t* result_place;  // [outputs], and in the result
  const float* source_offset;        // [dim], subtracted from the source's rows
  const float* result_factor;        // inverse: [outputs], multiplies row d of the steps' result
  const float* result_offset;        // forward: [outputs], added to the result's rows
  float scale;                       // forward: of the result, before the offset
  bool normalize;                    // divide by the root mean square of the source's vector
};

// Bytes from the values of a result: cell = floor(value * inverse_step + 128) within 0..255, then table[cell].
struct Cells {
  int bits;
  float inverse_step;
  std::uint8_t table[256];
  // The same for sixteen cells at a time, where at most two codes end: code = base[cell / 16] + how many of
  // below[0..1][cell / 16] are less than the cell (255: no code ends there).
  std::uint8_t base[16], below[2][16];
};

struct Levels {
  int bits;
  float table[16];    // bits < 8, repeated to fill
  float first, step;  // 8 bits: level = first + code * step
};

// Scratch of one thread.
struct Scratch {
  float* rows;          // [blocks][dim][lanes]
  float* staging;       // [max(channels)][kTile]
  std::uint8_t* cells;  // [dim][kTile]
};

// One call: tiles [first, last) of images on the same grid. Which members count depends on the operator.
struct Call {
  Image source, result;
  int source_fold = 1, result_fold = 1;
  bool inverse = false;  // klt
  Plan plan;
  Cells cells;
  Levels levels;
  const float* matrices = nullptr;
  const std::int64_t* index = nullptr;
  const float* offsets = nullptr;
};

}  // namespace ppcmi

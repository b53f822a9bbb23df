// What a call does, worked out once before its tiles: plain data for the kernels of every instruction set.
#pragma once

#include "../codebooks.h"
#include "../steps.h"

namespace ppcmi {

constexpr std::int64_t kTile = 64;  // positions; 16 of them took up to 3.3 times as long (a cache line a row, and TLB)
constexpr std::int64_t kMaxOdd = 63;  // of a structured mixing; checked where the material is made

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
  Matrices matrices{};
};

}  // namespace ppcmi

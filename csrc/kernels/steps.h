// A structured mixing as passes over the rows of a tile, for every device.
#pragma once

#include <vector>

#include "ops.h"

namespace ppcmi {

// One pass over a tile's rows. Butterflies: radix 2^bits on rows 2^low apart, row d first multiplied by signs[0][d]
// (null: not); with two turns, without signs[0], again after signs[1]. Factor (not null): mixes the `odd` runs of rows
// by it or its transpose after signs[0].
struct Step {
  int low = 0, bits = 0, turns = 0;
  const float* signs[2] = {};
  const float* factor = nullptr;
  bool transposed = false;
};

// The rounds of the material, or of its inverse, by steps of at most 2^radix_bits rows. Where a round begins with the
// rows that the one before it ended with, one step does both, so R rounds of up to radix^2 channels are R + 1 passes.
// The last step is one of butterflies. The signs with which an inverse ends are left to the caller. Pointers point into
// the material and are not read.
void plan_steps(const Material& material, bool inverse, int radix_bits, std::vector<Step>& steps);

}  // namespace ppcmi

// Codebooks as the kernels of every device use them: without a search.
#pragma once

#include "ops.h"

namespace ppcmi {

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

Cells make_cells(const Codebook& thresholds);
Levels make_levels(const Codebook& levels);

}  // namespace ppcmi

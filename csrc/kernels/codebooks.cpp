#include "codebooks.h"

#include <cmath>
#include <cstring>

namespace ppcmi {

namespace {

void fill_tables(const Codebook& thresholds, Cells& cells) {
  const int count = (1 << thresholds.bits) - 1;
  std::memset(cells.below, 255, sizeof cells.below);
  for (int cell = 0, code = 0; cell < 256; ++cell) {
    if (cell % 16 == 0) cells.base[cell / 16] = static_cast<std::uint8_t>(code);
    while (code < count && cell == std::lround(thresholds.table[code] * kCellsPerUnit) + 128) {
      // The very first cell of a group is in its base already.
      const int group = cell / 16;
      if (cell % 16 == 0) {
        ++cells.base[group];
      } else {
        cells.below[cells.below[0][group] == 255 ? 0 : 1][group] = static_cast<std::uint8_t>(cell - 1);
      }
      ++code;
    }
    cells.table[cell] = static_cast<std::uint8_t>(code);
  }
}

}  // namespace

Cells make_cells(const Codebook& thresholds) {
  Cells cells{};
  cells.bits = thresholds.bits;
  const int count = (1 << thresholds.bits) - 1;
  const float span = thresholds.table[count - 1] - thresholds.table[0];
  cells.inverse_step = thresholds.bits == 8 ? static_cast<float>(count - 1) / span : kCellsPerUnit;
  if (thresholds.bits < 8) fill_tables(thresholds, cells);
  return cells;
}

Levels make_levels(const Codebook& levels) {
  Levels made{};
  made.bits = levels.bits;
  const int count = 1 << levels.bits;
  made.first = levels.table[0];
  made.step = (levels.table[count - 1] - levels.table[0]) / static_cast<float>(count - 1);
  if (levels.bits < 8)
    for (int i = 0; i < 16; ++i) made.table[i] = levels.table[i % count];
  return made;
}

}  // namespace ppcmi

// klt: fold, normalize, mix, offset - or the way back. Reads and writes every element once; the tile (64 positions
// x dim, 16 KiB at dim 64) stays in the first-level cache between the two.
#include "mixing.h"

namespace ppcmi {

void klt(const Image& x, const Image& out, const Material& material, int fold, bool normalize, bool inverse,
         int threads) {
  const Image& grid = inverse ? x : out;
  const std::int64_t dim = material.dim;
  for_tiles(grid.n, grid.h, grid.w, 2 * dim, threads, [&](const Span& span, float* rows) {
    float* spare = rows + dim * kTile;
    load(x, span, grid.w, inverse ? 1 : fold, rows);
    if (normalize) normalize_rows(rows, dim);
    const float* result = inverse ? unmix(material, rows, spare) : mix(material, rows, spare);
    store(out, span, grid.w, inverse ? fold : 1, result);
  });
}

}  // namespace ppcmi

// klt_dequantize: codes to levels, inverse mixing, unfolding, in one pass over the tile.
#include "codes.h"
#include "mixing.h"

namespace ppcmi {

void klt_dequantize(const Image& codes, const Image& out, const Material& material, int fold, const Codebook& levels,
                    int threads) {
  const std::int64_t dim = material.dim;
  for_tiles(codes.n, codes.h, codes.w, 2 * dim, threads, [&](const Span& span, float* rows) {
    load_codes(codes, span, levels, rows);
    store(out, span, codes.w, fold, unmix(material, rows, rows + dim * kTile));
  });
}

}  // namespace ppcmi

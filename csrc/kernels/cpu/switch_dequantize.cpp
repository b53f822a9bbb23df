// switch_dequantize: codes to levels, then the sample's own matrix: what takes a mixed batch from many sites to the
// server's frame in one call.
#include "codes.h"
#include "mixing.h"

namespace ppcmi {

void switch_dequantize(const Image& codes, const Image& out, const float* matrices, const std::int64_t* index,
                       const float* offsets, const Codebook& levels, int threads) {
  const std::int64_t dim = codes.c * (8 / levels.bits), outputs = out.c;
  for_tiles(codes.n, codes.h, codes.w, dim + outputs, threads, [&](const Span& span, float* rows) {
    const std::int64_t which = index ? index[span.n] : 0;
    float* result = rows + dim * kTile;
    load_codes(codes, span, levels, rows);
    multiply(matrices + which * outputs * dim, false, rows, outputs, dim, result);
    if (offsets)
      for (std::int64_t d = 0; d < outputs; ++d)
        for (std::int64_t t = 0; t < kTile; ++t) result[d * kTile + t] += offsets[which * outputs + d];
    store(out, span, codes.w, 1, result);
  });
}

}  // namespace ppcmi

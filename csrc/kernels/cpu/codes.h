// Bytes of packed codes to rows of levels and back; byte row j holds channels j p .. j p + p - 1, the first lowest.
#pragma once

#include "tile.h"

namespace ppcmi {

// The code of each entry is the number of thresholds <= it; a NaN gets the highest code, as torch.bucketize gives.
void store_codes(const Image& codes, const Span& span, const Codebook& thresholds, const float* rows);

void load_codes(const Image& codes, const Span& span, const Codebook& levels, float* rows);

}  // namespace ppcmi

// klt_dequantize: codes to levels, inverse mixing, unfolding, in one pass over the tile.
#include <type_traits>

#include "codes.h"
#include "floats.h"
#include "kernels.h"

namespace ppcmi {
namespace PPCMI_ISA {

void klt_dequantize(const Call& call, const Scratch& scratch, std::int64_t first, std::int64_t last) {
  const Image& grid = call.source;
  for (std::int64_t tile = first; tile < last; ++tile) {
    const Span span = span_of(tile, grid.h * grid.w);
    with_levels(call, span, scratch, [&](const auto& source) { unmix_into(call, span, grid.w, scratch, source); });
  }
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

// switch_dequantize: codes to levels, then the sample's own matrix: what takes a mixed batch from many sites to the
// server's frame in one call. The levels of a tile are made once and stay in cache for all outputs.
#include <type_traits>

#include "codes.h"
#include "floats.h"
#include "kernels.h"

namespace ppcmi {
namespace PPCMI_ISA {

void switch_dequantize(const Call& call, const Scratch& scratch, std::int64_t first, std::int64_t last) {
  const Image &grid = call.source, &result = call.result;
  const std::int64_t outputs = call.plan.outputs, dim = call.plan.dim;
  for (std::int64_t tile = first; tile < last; ++tile) {
    const Span span = span_of(tile, grid.h * grid.w);
    Plan plan = call.plan;
    const std::int64_t which = call.matrices.index ? call.matrices.index[span.n] : 0;
    plan.matrix = call.matrices.data + which * outputs * dim;
    if (call.matrices.offsets) plan.result_offset = call.matrices.offsets + which * outputs;
    with_levels(call, span, scratch, [&](const auto& source) {
      with_type(result.type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        if (direct(result, span, grid.w, 1)) {
          T* data = static_cast<T*>(result.data) + start_of(result, span);
          mix<false>(plan, span.blocks, scratch.rows, source,
                     ForwardSink<T>{data, result.stride_c, plan.result_place, plan.result_offset});
        } else {
          mix<false>(plan, span.blocks, scratch.rows, source,
                     ForwardSink<float>{scratch.staging, kTile, plan.result_place, plan.result_offset});
          unstage<T>(result, span, grid.w, 1, scratch.staging);
        }
      });
    });
  }
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

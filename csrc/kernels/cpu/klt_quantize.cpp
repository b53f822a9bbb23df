// klt_quantize: the forward transform with the codes written straight from the tile, 5 bytes moved an element at
// 8 bits (4 read, 1 written) where the unfused chain moves 57.
#include <type_traits>

#include "codes.h"
#include "kernels.h"
#include "mixing.h"

namespace ppcmi {
namespace PPCMI_ISA {

namespace {

struct CellSink {
  std::uint8_t* cells;
  const std::int32_t* place;
  const float* offset;

  void operator()(std::int64_t d, int b, Vec value, Vec gain) const {
    const std::int64_t outside = place[d];
    store_cells(cells + outside * kTile + b * kLanes, value * gain + offset[outside]);
  }
};

template <typename Source>
void quantize(const Call& call, const Span& span, const Scratch& scratch, const Source& source) {
  const Plan& plan = call.plan;
  const CellSink sink{scratch.cells, plan.result_place, plan.result_offset};
  if (plan.normalize) {
    mix<true>(plan, span.blocks, scratch.rows, source, sink);
  } else {
    mix<false>(plan, span.blocks, scratch.rows, source, sink);
  }
  pack(call.cells, plan.outputs, scratch.cells);
  write_codes(call.result, span, scratch.cells);
}

}  // namespace

void klt_quantize(const Call& call, const Scratch& scratch, std::int64_t first, std::int64_t last) {
  const Image &x = call.source, &grid = call.result;
  for (std::int64_t tile = first; tile < last; ++tile) {
    const Span span = span_of(tile, grid.h * grid.w);
    with_type(x.type, [&](auto* null) {
      using T = std::remove_pointer_t<decltype(null)>;
      if (direct(x, span, grid.w, call.source_fold)) {
        const T* data = static_cast<const T*>(x.data) + start_of(x, span);
        quantize(call, span, scratch, PlainSource<T>{data, x.stride_c});
      } else {
        stage<T>(x, span, grid.w, call.source_fold, scratch.staging);
        quantize(call, span, scratch, PlainSource<float>{scratch.staging, kTile});
      }
    });
  }
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

// klt: fold, normalize, mix, offset - or the way back. Reads and writes every element once, in tiles of 64 positions
// that stay in the first two caches in between; rows are read and written where they lie when a plane is contiguous.
#include <type_traits>

#include "floats.h"
#include "kernels.h"

namespace ppcmi {
namespace PPCMI_ISA {

namespace {

template <typename T, typename Source>
void mix_into(const Call& call, const Span& span, const Scratch& scratch, const Source& source) {
  const Image& result = call.result;
  const Plan& plan = call.plan;
  const auto run = [&](const auto& sink) {
    if (plan.normalize) {
      mix<true>(plan, span.blocks, scratch.rows, source, sink);
    } else {
      mix<false>(plan, span.blocks, scratch.rows, source, sink);
    }
  };
  if (direct(result, span, result.w, 1)) {
    run(ForwardSink<T>{static_cast<T*>(result.data) + start_of(result, span), result.stride_c, plan.result_place,
                       plan.result_offset});
  } else {
    run(ForwardSink<float>{scratch.staging, kTile, plan.result_place, plan.result_offset});
    unstage<T>(result, span, result.w, 1, scratch.staging);
  }
}

void forward(const Call& call, const Span& span, const Scratch& scratch) {
  const Image& x = call.source;
  with_type(x.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (direct(x, span, call.result.w, call.source_fold)) {
      const T* data = static_cast<const T*>(x.data) + start_of(x, span);
      mix_into<T>(call, span, scratch, PlainSource<T>{data, x.stride_c});
    } else {
      stage<T>(x, span, call.result.w, call.source_fold, scratch.staging);
      mix_into<T>(call, span, scratch, PlainSource<float>{scratch.staging, kTile});
    }
  });
}

void inverse(const Call& call, const Span& span, const Scratch& scratch) {
  const Image& x = call.source;
  const Plan& plan = call.plan;
  with_type(x.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (direct(x, span, x.w, 1)) {
      const T* data = static_cast<const T*>(x.data) + start_of(x, span);
      unmix_into(call, span, x.w, scratch, FloatSource<T>{data, x.stride_c, plan.source_place, plan.source_offset});
    } else {
      stage<T>(x, span, x.w, 1, scratch.staging);
      unmix_into(call, span, x.w, scratch,
                 FloatSource<float>{scratch.staging, kTile, plan.source_place, plan.source_offset});
    }
  });
}

}  // namespace

void klt(const Call& call, const Scratch& scratch, std::int64_t first, std::int64_t last) {
  const Image& grid = call.inverse ? call.source : call.result;
  for (std::int64_t tile = first; tile < last; ++tile) {
    const Span span = span_of(tile, grid.h * grid.w);
    call.inverse ? inverse(call, span, scratch) : forward(call, span, scratch);
  }
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

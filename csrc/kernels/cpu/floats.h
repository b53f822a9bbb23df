// Results as floats, for the operators that end in them.
#pragma once

#include "mixing.h"

namespace ppcmi {
namespace PPCMI_ISA {

template <typename T>
struct ForwardSink {
  static constexpr bool kWhole = false, kHalves = true;
  T* data;
  std::int64_t stride;
  const std::int32_t* place;
  const float* offset;

  void operator()(std::int64_t d, int b, Vec value, Vec gain) const {
    const std::int64_t outside = place[d];
    store(data + outside * stride + b * kLanes, value * gain + offset[outside]);
  }
};

template <typename T>
struct InverseSink {
  // Results of four bytes gain more from wide pieces than from the first cache.
  static constexpr bool kWhole = false, kHalves = false;
  T* data;
  std::int64_t stride;
  const float* factor;

  void operator()(std::int64_t d, int b, Vec value, Vec) const {
    store(data + d * stride + b * kLanes, value * factor[d]);
  }
};

// The inverse mixing of a source into an image of the grid's positions times `fold`.
template <typename Source>
void unmix_into(const Call& call, const Span& span, std::int64_t grid_w, const Scratch& scratch, const Source& source) {
  const Image& result = call.result;
  const Plan& plan = call.plan;
  with_type(result.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (direct(result, span, grid_w, call.result_fold)) {
      T* data = static_cast<T*>(result.data) + start_of(result, span);
      mix<false>(plan, span.blocks, scratch.rows, source, InverseSink<T>{data, result.stride_c, plan.result_factor});
    } else {
      mix<false>(plan, span.blocks, scratch.rows, source,
                 InverseSink<float>{scratch.staging, kTile, plan.result_factor});
      unstage<T>(result, span, grid_w, call.result_fold, scratch.staging);
    }
  });
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

// klt: fold, normalize, mix, offset - or the way back, on a CUDA device.
//
// Layout: structured mixings of 16 to 512 channels as planes.cuh and staged.cuh say, dense ones of up to 128 that lie
// as planes as warp_product.cuh says. Others: a block of 256 threads holds 32, 64 or 128 positions x all channels in
// shared memory; a warp works on a row, a lane on 1, 2 or 4 positions. 8 bytes an element at float32. Why: every
// element is read and written once; what lies between stays in registers and shared memory. Measured:
// docs/performance.md.
#include <type_traits>

#include "block.cuh"
#include "ops.h"
#include "staged.cuh"
#include "warp_product.cuh"

namespace ppcmi::cuda {

namespace {

template <typename T, int kWide>
__global__ void __launch_bounds__(kThreads)
    klt_kernel(const FloatSource<T> source, const FloatResult<T> result, const Plan plan, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(float, memory);
  const Shared<kWide> shared(memory, plan);
  const Span span = span_of<kWide>(area);
  source.template load<kWide>(plan, span, shared.rows);
  mix_and_store<kWide>(plan, plan.matrix, plan.scale, shared, [&](int from, int end, const float* rows) {
    result.template store<kWide>(plan, span, plan.offset, from, end, rows, shared.gains);
  });
}

template <typename T, typename S, bool kInverse>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    klt_planes_kernel(const Planes<T> source, const Planes<T> result, const Rounds rounds, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(Workshop<S>, shop);
  const Seat seat = seat_of<S>(area);
  const T* from = seat.in(source);
  T* to = seat.in(result);
  const auto in_order = [](int d, const auto& planes) { return d * planes.next_channel; };
  if constexpr (kInverse) {
    const auto read = [&](int d) {
      const Place place = shop->places[d];
      auto value = floats_at<S::kWide>(from + place.at);
#pragma unroll
      for (int i = 0; i < S::kWide; ++i) value.at[i] += place.add;
      return value;
    };
    unmix_planes<S>(rounds, source.next_channel, *shop, read, [&](int d, const auto& value, const auto& gain) {
      set_floats(to + in_order(d, result), value, gain, 0.0f);
    });
  } else {
    const auto read = [&](int d) { return floats_at<S::kWide>(from + in_order(d, source)); };
    mix_planes<S>(rounds, result.next_channel, *shop, read, [&](int d, const auto& value, const auto& gain) {
      const Place place = shop->places[d];
      set_floats(to + place.at, value, gain, place.add);
    });
  }
}

template <typename T, typename S, bool kInverse>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    klt_staged_kernel(const FloatSource<T> source, const FloatResult<T> result, const Rounds rounds, const Plan plan,
                      const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(StagedWorkshop<S>, shop);
  mix_staged<S, kInverse>(rounds, plan, staged_span<S>(area), source, result, *shop);
}

// False where the mixing is not of a known shape.
template <typename T, bool kInverse>
bool klt_of_shape(const Image& x, const Image& out, const Material& material, int fold, bool normalize,
                  cudaStream_t stream) {
  const Image& grid = kInverse ? x : out;
  const std::int64_t area = grid.h * grid.w;
  return with_shape(material, grid.n, area, [&](auto shape) {
    using S = decltype(shape);
    const Rounds rounds = rounds_of(material, kInverse ? -1.0f : 1.0f, 0.0f, 1.0f, normalize);
    const dim3 blocks = blocks_of<S>(grid.n, area);
    Planes<T> from, to;
    if (fold == 1 && planes_of(x, area, S::kWide, from) && planes_of(out, area, S::kWide, to)) {
      PPCMI_LAUNCH((klt_planes_kernel<T, S, kInverse>), blocks, dim3(kThreads), sizeof(Workshop<S>), stream, from, to,
                   rounds, area);
      return;
    }
    const FloatSource<T> source{staged_view(x, grid.h, grid.w, kInverse ? 1 : fold, sizeof(T))};
    const FloatResult<T> result{staged_view(out, grid.h, grid.w, kInverse ? fold : 1, sizeof(T))};
    PPCMI_LAUNCH((klt_staged_kernel<T, S, kInverse>), blocks, dim3(kThreads), sizeof(StagedWorkshop<S>), stream, source,
                 result, rounds, make_plan(material, kInverse, normalize), area);
  });
}

}  // namespace

void klt(const Image& x, const Image& out, const Material& material, int fold, bool normalize, bool inverse,
         cudaStream_t stream) {
  const Image& grid = inverse ? x : out;
  const std::int64_t area = grid.h * grid.w;
  if (grid.n * area == 0) return;
  with_type(x.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (inverse ? klt_of_shape<T, true>(x, out, material, fold, normalize, stream)
                : klt_of_shape<T, false>(x, out, material, fold, normalize, stream))
      return;
    Plan plan = make_plan(material, inverse, normalize);
    plan.short_source = x.type != Type::f32 && !(inverse && plan.offset);
    if (fold == 1 && warp_product<T, T>(x, out, dense_of(plan), stream)) return;
    with_width(plan, area, [&](auto wide) {
      constexpr int kWide = decltype(wide)::value;
      const FloatSource<T> source{view_of(x, grid.h, grid.w, inverse ? 1 : fold, kWide, sizeof(T))};
      const FloatResult<T> result{view_of(out, grid.h, grid.w, inverse ? fold : 1, kWide, sizeof(T))};
      PPCMI_LAUNCH((klt_kernel<T, kWide>), blocks_for(grid.n, area, kWide), dim3(kThreads), Shared<kWide>::bytes(plan),
                   stream, source, result, plan, area);
    });
  });
}

}  // namespace ppcmi::cuda

// klt: fold, normalize, mix, offset - or the way back, on a CUDA device.
//
// Layout: a block of 256 threads holds 32, 64 or 128 positions x all channels in shared memory; a warp works on a row,
// a lane on 1, 2 or 4 positions, so that contiguous planes move 128 to 512 bytes a warp. 8 bytes an element at float32.
// Why: every element is read and written once; what lies between stays in shared memory (about 24 bytes an element at
// 64 channels). Measured: not yet measured.
#include <type_traits>

#include "block.cuh"
#include "ops.h"
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

}  // namespace

void klt(const Image& x, const Image& out, const Material& material, int fold, bool normalize, bool inverse,
         cudaStream_t stream) {
  const Image& grid = inverse ? x : out;
  const std::int64_t area = grid.h * grid.w;
  if (grid.n * area == 0) return;
  Plan plan = make_plan(material, inverse, normalize);
  plan.short_source = x.type != Type::f32 && !(inverse && plan.offset);
  with_type(x.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
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

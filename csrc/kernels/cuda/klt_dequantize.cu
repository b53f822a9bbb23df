// klt_dequantize: codes to levels, inverse mixing, unfolding, on a CUDA device.
//
// Layout: a block of 256 threads holds 32, 64 or 128 positions x all channels in shared memory; a warp works on a row,
// a lane on 1, 2 or 4 positions, so that contiguous planes move 128 to 512 bytes a warp. 5 bytes an element at 8 bits
// and float32. Why: every element is read and written once; what lies between stays in shared memory (about 24 bytes an
// element at 64 channels). Measured: not yet measured.
#include <type_traits>

#include "block.cuh"
#include "ops.h"
#include "warp_product.cuh"

namespace ppcmi::cuda {

namespace {

template <typename T, int kWide>
__global__ void __launch_bounds__(kThreads) klt_dequantize_kernel(const CodeSource source, const FloatResult<T> result,
                                                                  const Plan plan, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(float, memory);
  const Shared<kWide> shared(memory, plan);
  const Span span = span_of<kWide>(area);
  source.template load<kWide>(plan, span, shared.rows);
  mix_and_store<kWide>(plan, plan.matrix, plan.scale, shared, [&](int from, int end, const float* rows) {
    result.template store<kWide>(plan, span, nullptr, from, end, rows, shared.gains);
  });
}

}  // namespace

void klt_dequantize(const Image& codes, const Image& out, const Material& material, int fold, const Codebook& levels,
                    cudaStream_t stream) {
  const std::int64_t area = codes.h * codes.w;
  if (codes.n * area == 0) return;
  const Plan plan = make_plan(material, true, false);
  Dense dense = dense_of(plan);
  take_levels(make_levels(levels), dense);
  with_type(out.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (fold == 1 && levels.bits == 8 && warp_product<std::uint8_t, T>(codes, out, dense, stream)) return;
    with_width(plan, area, [&](auto wide) {
      constexpr int kWide = decltype(wide)::value;
      const CodeSource source{view_of(codes, codes.h, codes.w, 1, kWide, 1), make_levels(levels)};
      const FloatResult<T> result{view_of(out, codes.h, codes.w, fold, kWide, sizeof(T))};
      PPCMI_LAUNCH((klt_dequantize_kernel<T, kWide>), blocks_for(codes.n, area, kWide), dim3(kThreads),
                   Shared<kWide>::bytes(plan), stream, source, result, plan, area);
    });
  });
}

}  // namespace ppcmi::cuda

// klt_quantize: the forward transform with packed codes for a result, on a CUDA device.
//
// Layout: a block of 256 threads holds 32, 64 or 128 positions x all channels in shared memory; a warp works on a row,
// a lane on 1, 2 or 4 positions, so that contiguous planes move 128 to 512 bytes a warp. 5 bytes an element at float32
// and 8 bits. Why: every element is read and written once; what lies between stays in shared memory (about 24 bytes an
// element at 64 channels). Measured: not yet measured.
#include <type_traits>

#include "block.cuh"
#include "ops.h"
#include "warp_product.cuh"

namespace ppcmi::cuda {

namespace {

template <typename T, int kWide>
__global__ void __launch_bounds__(kThreads) klt_quantize_kernel(const FloatSource<T> source, const CodeResult result,
                                                                const Plan plan, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(float, memory);
  const Shared<kWide> shared(memory, plan);
  const Span span = span_of<kWide>(area);
  // The barriers of the mixing come between this and the table's first use.
  for (int k = static_cast<int>(threadIdx.x); k < 256; k += kThreads) shared.table[k] = result.cells.table[k];
  source.template load<kWide>(plan, span, shared.rows);
  mix_and_store<kWide>(plan, plan.matrix, plan.scale, shared, [&](int from, int end, const float* rows) {
    result.template store<kWide>(plan, span, from, end, rows, shared.gains, shared.table);
  });
}

}  // namespace

void klt_quantize(const Image& x, const Image& codes, const Material& material, int fold, bool normalize,
                  const Codebook& thresholds, cudaStream_t stream) {
  const std::int64_t area = codes.h * codes.w;
  if (codes.n * area == 0) return;
  const Cells cells = make_cells(thresholds);
  Plan plan = make_plan(material, false, normalize);
  plan.scale *= cells.inverse_step;
  plan.short_source = x.type != Type::f32;
  Dense dense = dense_of(plan);
  dense.scale_of_offset = cells.inverse_step;
  dense.shift = 128.0f;
  with_type(x.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (fold == 1 && cells.bits == 8 && warp_product<T, std::uint8_t>(x, codes, dense, stream)) return;
    with_width(plan, area, [&](auto wide) {
      constexpr int kWide = decltype(wide)::value;
      const FloatSource<T> source{view_of(x, codes.h, codes.w, fold, kWide, sizeof(T))};
      const CodeResult result{view_of(codes, codes.h, codes.w, 1, kWide, 1), cells};
      PPCMI_LAUNCH((klt_quantize_kernel<T, kWide>), blocks_for(codes.n, area, kWide), dim3(kThreads),
                   Shared<kWide>::bytes(plan), stream, source, result, plan, area);
    });
  });
}

}  // namespace ppcmi::cuda

// switch_dequantize: codes to levels, then the sample's own matrix, on a CUDA device.
//
// Layout: 8-bit codes of up to 128 channels that lie as planes as warp_product.cuh says. Others: a block of 256 threads
// holds 32 or 64 positions x all channels in shared memory; a warp works on a row, a lane on 1 or 2 positions; the
// matrix comes from the caches, once a block. 5 bytes an element at 8 bits and float32. Why: every element is read and
// written once; what lies between stays in shared memory (and the levels serve all outputs). Measured:
// docs/performance.md.
#include <type_traits>

#include "block.cuh"
#include "ops.h"
#include "warp_product.cuh"

namespace ppcmi::cuda {

namespace {

template <typename T, int kWide>
__global__ void __launch_bounds__(kThreads)
    switch_dequantize_kernel(const CodeSource source, const FloatResult<T> result, const Plan plan,
                             const Matrices matrices, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(float, memory);
  const Shared<kWide> shared(memory, plan);
  const Span span = span_of<kWide>(area);
  const std::int64_t asked = matrices.index ? matrices.index[span.n] : 0;
  const bool there = asked >= 0 && asked < matrices.count;
  const std::int64_t which = there ? asked : 0;
  const float* matrix = matrices.data + which * plan.outputs * plan.dim;
  const float* offset = matrices.offsets ? matrices.offsets + which * plan.outputs : nullptr;
  source.template load<kWide>(plan, span, shared.rows);
  mix_and_store<kWide>(plan, matrix, there ? 1.0f : nanf(""), shared, [&](int from, int end, const float* rows) {
    result.template store<kWide>(plan, span, offset, from, end, rows, shared.gains);
  });
}

}  // namespace

void switch_dequantize(const Image& codes, const Image& out, const Matrices& matrices, const Codebook& levels,
                       cudaStream_t stream) {
  const std::int64_t area = codes.h * codes.w;
  if (codes.n * area == 0) return;
  Plan plan{};
  plan.dim = static_cast<int>(codes.c) * (8 / levels.bits);
  plan.outputs = static_cast<int>(out.c);
  plan.odd = 1;
  plan.matrix = matrices.data;
  plan.scale = 1.0f;
  Dense dense = dense_of(plan);
  take_levels(make_levels(levels), dense);
  dense.offset = matrices.offsets;
  dense.index = matrices.index;
  dense.count = matrices.count;
  with_type(out.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (levels.bits == 8 && warp_product<std::uint8_t, T>(codes, out, dense, stream)) return;
    with_width(plan, area, [&](auto wide) {
      constexpr int kWide = decltype(wide)::value;
      const CodeSource source{view_of(codes, codes.h, codes.w, 1, kWide, 1), make_levels(levels)};
      const FloatResult<T> result{view_of(out, codes.h, codes.w, 1, kWide, sizeof(T))};
      PPCMI_LAUNCH((switch_dequantize_kernel<T, kWide>), blocks_for(codes.n, area, kWide), dim3(kThreads),
                   Shared<kWide>::bytes(plan), stream, source, result, plan, matrices, area);
    });
  });
}

}  // namespace ppcmi::cuda

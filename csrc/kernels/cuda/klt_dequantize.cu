// klt_dequantize: codes to levels, inverse mixing, unfolding, on a CUDA device.
//
// Layout: structured mixings of 16 to 512 channels as planes.cuh and staged.cuh say, dense ones of up to 128 that lie
// as planes as warp_product.cuh says. Others: a block of 256 threads holds 32, 64 or 128 positions x all channels in
// shared memory; a warp works on a row, a lane on 1, 2 or 4 positions. 5 bytes an element at 8 bits and float32. Why:
// every element is read and written once; what lies between stays in registers and shared memory. Measured:
// docs/performance.md.
#include <type_traits>

#include "block.cuh"
#include "ops.h"
#include "staged.cuh"
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

template <typename S>
struct UnpackingWorkshop : Workshop<S> {
  float levels[16];
};

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    klt_dequantize_planes_kernel(const Planes<std::uint8_t> source, const Planes<T> result, const Rounds rounds,
                                 const float step, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(Workshop<S>, shop);
  const Seat seat = seat_of<S>(area);
  const std::uint8_t* from = seat.in(source);
  T* to = seat.in(result);
  const auto read = [&](int d) {
    const Place place = shop->places[d];
    const auto codes = *reinterpret_cast<const Packed<std::uint8_t, S::kWide>*>(from + place.at);
    Floats<S::kWide> value;
#pragma unroll
    for (int i = 0; i < S::kWide; ++i) value.at[i] = fmaf(static_cast<float>(codes.at[i]), step, place.add);
    return value;
  };
  unmix_planes<S>(rounds, source.next_channel, *shop, read, [&](int d, const auto& value, const auto& gain) {
    set_floats(to + d * result.next_channel, value, gain, 0.0f);
  });
}

// Below 8 bits each byte is read for each of its codes: from the caches after the first.
template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    klt_dequantize_packed_kernel(const Planes<std::uint8_t> source, const Planes<T> result, const Rounds rounds,
                                 const Levels levels, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(UnpackingWorkshop<S>, shop);
  const Seat seat = seat_of<S>(area);
  const std::uint8_t* from = seat.in(source);
  T* to = seat.in(result);
  if (threadIdx.x < 16) shop->levels[threadIdx.x] = levels.table[threadIdx.x];
  const int shift = levels.bits == 4 ? 1 : 2, mask = (1 << levels.bits) - 1;  // 2^shift codes a byte
  const auto read = [&](int d) {
    const Place place = shop->places[d];
    const int at = (place.at >> shift) * source.next_channel;
    const auto bytes = *reinterpret_cast<const Packed<std::uint8_t, S::kWide>*>(from + at);
    const int lowest = (place.at & ((1 << shift) - 1)) * levels.bits;
    Floats<S::kWide> value;
#pragma unroll
    for (int i = 0; i < S::kWide; ++i) value.at[i] = shop->levels[bytes.at[i] >> lowest & mask] + place.add;
    return value;
  };
  unmix_planes<S>(rounds, 1, *shop, read, [&](int d, const auto& value, const auto& gain) {
    set_floats(to + d * result.next_channel, value, gain, 0.0f);
  });
}

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    klt_dequantize_staged_kernel(const CodeSource source, const FloatResult<T> result, const Rounds rounds,
                                 const Plan plan, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(StagedWorkshop<S>, shop);
  if (threadIdx.x < 16) shop->levels[threadIdx.x] = source.levels.table[threadIdx.x];
  mix_staged<S, true>(rounds, plan, staged_span<S>(area), source, result, *shop);
}

// False where the mixing is not of a known shape.
template <typename T>
bool klt_dequantize_of_shape(const Image& codes, const Image& out, const Material& material, int fold,
                             const Levels& levels, cudaStream_t stream) {
  const std::int64_t area = codes.h * codes.w;
  return with_shape(material, codes.n, area, [&](auto shape) {
    using S = decltype(shape);
    const Rounds rounds = rounds_of(material, -1.0f, levels.bits == 8 ? levels.first : 0.0f, 1.0f, false);
    const dim3 blocks = blocks_of<S>(codes.n, area);
    Planes<std::uint8_t> from;
    Planes<T> to;
    if (fold != 1 || !planes_of(codes, area, S::kWide, from) || !planes_of(out, area, S::kWide, to)) {
      const CodeSource source{staged_view(codes, codes.h, codes.w, 1, 1), levels};
      const FloatResult<T> result{staged_view(out, codes.h, codes.w, fold, sizeof(T))};
      PPCMI_LAUNCH((klt_dequantize_staged_kernel<T, S>), blocks, dim3(kThreads), sizeof(StagedWorkshop<S>), stream,
                   source, result, rounds, make_plan(material, true, false), area);
    } else if (levels.bits == 8) {
      PPCMI_LAUNCH((klt_dequantize_planes_kernel<T, S>), blocks, dim3(kThreads), sizeof(Workshop<S>), stream, from, to,
                   rounds, levels.step, area);
    } else {
      PPCMI_LAUNCH((klt_dequantize_packed_kernel<T, S>), blocks, dim3(kThreads), sizeof(UnpackingWorkshop<S>), stream,
                   from, to, rounds, levels, area);
    }
  });
}

}  // namespace

void klt_dequantize(const Image& codes, const Image& out, const Material& material, int fold, const Codebook& levels,
                    cudaStream_t stream) {
  const std::int64_t area = codes.h * codes.w;
  if (codes.n * area == 0) return;
  const Levels table = make_levels(levels);
  with_type(out.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (klt_dequantize_of_shape<T>(codes, out, material, fold, table, stream)) return;
    const Plan plan = make_plan(material, true, false);
    Dense dense = dense_of(plan);
    take_levels(table, dense);
    if (fold == 1 && levels.bits == 8 && warp_product<std::uint8_t, T>(codes, out, dense, stream)) return;
    with_width(plan, area, [&](auto wide) {
      constexpr int kWide = decltype(wide)::value;
      const CodeSource source{view_of(codes, codes.h, codes.w, 1, kWide, 1), table};
      const FloatResult<T> result{view_of(out, codes.h, codes.w, fold, kWide, sizeof(T))};
      PPCMI_LAUNCH((klt_dequantize_kernel<T, kWide>), blocks_for(codes.n, area, kWide), dim3(kThreads),
                   Shared<kWide>::bytes(plan), stream, source, result, plan, area);
    });
  });
}

}  // namespace ppcmi::cuda

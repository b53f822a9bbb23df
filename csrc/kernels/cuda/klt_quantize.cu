// klt_quantize: the forward transform with packed codes for a result, on a CUDA device.
//
// Layout: structured mixings of 16 to 512 channels as planes.cuh and staged.cuh say, dense ones of up to 128 that lie
// as planes as warp_product.cuh says. Others: a block of 256 threads holds 32, 64 or 128 positions x all channels in
// shared memory; a warp works on a row, a lane on 1, 2 or 4 positions. 5 bytes an element at float32 and 8 bits. Why:
// every element is read and written once; what lies between stays in registers and shared memory. Measured:
// docs/performance.md.
#include <type_traits>

#include "block.cuh"
#include "ops.h"
#include "staged.cuh"
#include "warp_product.cuh"

namespace ppcmi::cuda {

namespace {

// The barriers of the mixing come between this and the table's first use.
__device__ __forceinline__ void copy_table(const Cells& cells, std::uint8_t* table) {
  for (int k = static_cast<int>(threadIdx.x); k < 256; k += kThreads) table[k] = cells.table[k];
}

template <typename T, int kWide>
__global__ void __launch_bounds__(kThreads) klt_quantize_kernel(const FloatSource<T> source, const CodeResult result,
                                                                const Plan plan, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(float, memory);
  const Shared<kWide> shared(memory, plan);
  const Span span = span_of<kWide>(area);
  copy_table(result.cells, shared.table);
  source.template load<kWide>(plan, span, shared.rows);
  mix_and_store<kWide>(plan, plan.matrix, plan.scale, shared, [&](int from, int end, const float* rows) {
    result.template store<kWide>(plan, span, from, end, rows, shared.gains, shared.table);
  });
}

// Below 8 bits all codes are in shared memory before they are packed.
template <typename S>
struct PackingWorkshop : Workshop<S> {
  std::uint8_t table[256];
  std::uint8_t codes[S::kDim][S::kPositions];
};

// A warp packs the channels whose turn it has, or all of its own positions.
template <typename S>
__device__ __forceinline__ void store_packed(const PackingWorkshop<S>& shop, const Planes<std::uint8_t>& result,
                                             const Seat& seat, int bits) {
  using Bytes = Packed<std::uint8_t, S::kWide>;
  const int column = place_of<S>() * S::kWide, per_byte = 8 / bits;
  std::uint8_t* to = seat.in(result);
  const int first = S::kAlone ? 0 : static_cast<int>(threadIdx.x) / 32;
  for (int j = first; j < S::kDim / per_byte; j += S::kAlone ? 1 : kWarps) {
    Bytes packed{};
    for (int p = 0; p < per_byte; ++p) {
      const auto codes = *reinterpret_cast<const Bytes*>(&shop.codes[j * per_byte + p][column]);
#pragma unroll
      for (int i = 0; i < S::kWide; ++i) packed.at[i] |= static_cast<std::uint8_t>(codes.at[i] << (p * bits));
    }
    *reinterpret_cast<Bytes*>(to + j * result.next_channel) = packed;
  }
}

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    klt_quantize_planes_kernel(const Planes<T> source, const Planes<std::uint8_t> result, const Rounds rounds,
                               const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(Workshop<S>, shop);
  const Seat seat = seat_of<S>(area);
  const T* from = seat.in(source);
  std::uint8_t* to = seat.in(result);
  const auto read = [&](int d) { return floats_at<S::kWide>(from + d * source.next_channel); };
  mix_planes<S>(rounds, result.next_channel, *shop, read, [&](int d, const auto& value, const auto& gain) {
    const Place place = shop->places[d];
    Packed<std::uint8_t, S::kWide> codes;
#pragma unroll
    for (int i = 0; i < S::kWide; ++i)
      codes.at[i] = static_cast<std::uint8_t>(byte_of(fmaf(value.at[i], gain.at[i], place.add)));
    *reinterpret_cast<Packed<std::uint8_t, S::kWide>*>(to + place.at) = codes;
  });
}

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    klt_quantize_packed_kernel(const Planes<T> source, const Planes<std::uint8_t> result, const Rounds rounds,
                               const Cells cells, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(PackingWorkshop<S>, shop);
  const Seat seat = seat_of<S>(area);
  const T* from = seat.in(source);
  const int column = place_of<S>() * S::kWide;
  copy_table(cells, shop->table);
  const auto read = [&](int d) { return floats_at<S::kWide>(from + d * source.next_channel); };
  mix_planes<S>(rounds, 1, *shop, read, [&](int d, const auto& value, const auto& gain) {
    const Place place = shop->places[d];
    Packed<std::uint8_t, S::kWide> codes;
#pragma unroll
    for (int i = 0; i < S::kWide; ++i) codes.at[i] = shop->table[byte_of(fmaf(value.at[i], gain.at[i], place.add))];
    *reinterpret_cast<Packed<std::uint8_t, S::kWide>*>(&shop->codes[place.at][column]) = codes;
  });
  if (!S::kAlone) {
    __syncthreads();
  }
  store_packed(*shop, result, seat, cells.bits);
}

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    klt_quantize_staged_kernel(const FloatSource<T> source, const CodeResult result, const Rounds rounds,
                               const Plan plan, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(StagedWorkshop<S>, shop);
  copy_table(result.cells, shop->table);
  mix_staged<S, false>(rounds, plan, staged_span<S>(area), source, result, *shop);
}

// False where the mixing is not of a known shape.
template <typename T>
bool klt_quantize_of_shape(const Image& x, const Image& codes, const Material& material, int fold, bool normalize,
                           const Cells& cells, cudaStream_t stream) {
  const std::int64_t area = codes.h * codes.w;
  return with_shape(material, codes.n, area, [&](auto shape) {
    using S = decltype(shape);
    const Rounds rounds = rounds_of(material, cells.inverse_step, 128.0f, cells.inverse_step, normalize);
    const dim3 blocks = blocks_of<S>(codes.n, area);
    Planes<T> from;
    Planes<std::uint8_t> to;
    if (fold != 1 || !planes_of(x, area, S::kWide, from) || !planes_of(codes, area, S::kWide, to)) {
      const FloatSource<T> source{staged_view(x, codes.h, codes.w, fold, sizeof(T))};
      const CodeResult result{staged_view(codes, codes.h, codes.w, 1, 1), cells};
      PPCMI_LAUNCH((klt_quantize_staged_kernel<T, S>), blocks, dim3(kThreads), sizeof(StagedWorkshop<S>), stream,
                   source, result, rounds, make_plan(material, false, normalize), area);
    } else if (cells.bits == 8) {
      PPCMI_LAUNCH((klt_quantize_planes_kernel<T, S>), blocks, dim3(kThreads), sizeof(Workshop<S>), stream, from, to,
                   rounds, area);
    } else {
      PPCMI_LAUNCH((klt_quantize_packed_kernel<T, S>), blocks, dim3(kThreads), sizeof(PackingWorkshop<S>), stream, from,
                   to, rounds, cells, area);
    }
  });
}

}  // namespace

void klt_quantize(const Image& x, const Image& codes, const Material& material, int fold, bool normalize,
                  const Codebook& thresholds, cudaStream_t stream) {
  const std::int64_t area = codes.h * codes.w;
  if (codes.n * area == 0) return;
  const Cells cells = make_cells(thresholds);
  with_type(x.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (klt_quantize_of_shape<T>(x, codes, material, fold, normalize, cells, stream)) return;
    Plan plan = make_plan(material, false, normalize);
    plan.scale *= cells.inverse_step;
    plan.short_source = x.type != Type::f32;
    Dense dense = dense_of(plan);
    dense.scale_of_offset = cells.inverse_step;
    dense.shift = 128.0f;
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

// The mixing of planes.cuh for images of other forms, which pass through shared memory as rows of floats: channels-last
// ones vector by vector with all their loads under way at once, and what remains, folded images and views, by strides.
#pragma once

#include "images.cuh"
#include "planes.cuh"

namespace ppcmi::cuda {

template <typename S>
struct StagedWorkshop : Workshop<S> {
  alignas(16) Place ends[S::kDim];  // by channel of the permuted side: where its row begins, and what is added
  float gains[S::kPositions];
  float levels[16];         // below 8 bits
  std::uint8_t table[256];  // likewise
  alignas(16) float vectors[S::kAlone ? S::kDim * S::kPitch : 1];

  __device__ __forceinline__ float* staged() { return S::kAlone ? vectors : this->rows; }

  __device__ __forceinline__ void fill_ends(const Rounds& rounds) {
    for (int d = static_cast<int>(threadIdx.x); d < S::kDim; d += kThreads) {
      ends[d] = {static_cast<int>(__ldg(rounds.perm + d)) * S::kPitch, rounds.added_to(d)};
    }
  }
};

// Which positions a block has.
template <typename S>
__device__ __forceinline__ Span staged_span(std::int64_t area) {
  const Seat block = seat_of_block<S>(area);
  const std::int64_t left = area - block.first;
  return {block.n, block.first, left < S::kPositions ? static_cast<int>(left) : S::kPositions};
}

// An image that passes through shared memory moves position by position, not in rows of a lane's.
inline View staged_view(const Image& image, std::int64_t h, std::int64_t w, int fold, std::size_t element) {
  View view = view_of(image, h, w, fold, 1, element);
  view.vectors = false;
  return view;
}

// Whether the channels of a position lie next to each other, and positions at one distance.
__device__ __forceinline__ bool has_vectors(const View& view) { return view.packs && view.joined; }

// Calls visit(channel, position in the tile, address) for kPack channels at a time. A warp takes 8 positions x 16
// channels, which meet in no bank.
template <typename S, typename T, typename Visit>
__device__ __forceinline__ void for_vectors(const View& view, const Span& span, const Visit& visit) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  T* data = static_cast<T*>(view.image.data) + span.n * view.image.stride_n + span.first * view.image.stride_w;
  for (int t = warp * 8 + lane % 8; t < span.count; t += kWarps * 8) {
    T* vector = data + t * view.image.stride_w + lane / 8 * kPack;
#pragma unroll 8
    for (int c = 0; c < S::kDim; c += 4 * kPack)
      visit(c + lane / 8 * kPack, t, reinterpret_cast<Packed<T, kPack>*>(vector + c));
  }
}

template <typename S, bool kInverse, typename T>
__device__ __forceinline__ void load_vectors(const FloatSource<T>& source, const Span& span, StagedWorkshop<S>& shop) {
  float* rows = shop.staged();
  for_vectors<S, T>(source.view, span, [&](int c, int t, const Packed<T, kPack>* at) {
    const Packed<T, kPack> packed = *at;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      if constexpr (kInverse) {
        const Place end = shop.ends[c + j];
        rows[end.at + t] = to_float(packed.at[j]) + end.add;
      } else {
        rows[(c + j) * S::kPitch + t] = to_float(packed.at[j]);
      }
    }
  });
}

template <typename S, bool kInverse, typename T>
__device__ __forceinline__ void store_vectors(const FloatResult<T>& result, const Span& span, StagedWorkshop<S>& shop) {
  const float* rows = shop.staged();
  for_vectors<S, T>(result.view, span, [&](int c, int t, Packed<T, kPack>* at) {
    Packed<T, kPack> packed;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      if constexpr (kInverse) {
        from_float(fmaf(rows[(c + j) * S::kPitch + t], shop.gains[t] * shop.outer[c + j], 0.0f), packed.at[j]);
      } else {
        const Place end = shop.ends[c + j];
        from_float(fmaf(rows[end.at + t], shop.gains[t], end.add), packed.at[j]);
      }
    }
    *at = packed;
  });
}

// Calls visit(channel, position in the tile, address) for the channels whose codes share four bytes; neighbouring lanes
// take neighbouring bytes.
template <typename S, int kBits, typename Visit>
__device__ __forceinline__ void for_words(const View& view, const Span& span, const Visit& visit) {
  constexpr int kWords = S::kDim * kBits / 32;
  auto* data =
      static_cast<std::uint8_t*>(view.image.data) + span.n * view.image.stride_n + span.first * view.image.stride_w;
#pragma unroll 4
  for (int q = static_cast<int>(threadIdx.x); q < span.count * kWords; q += kThreads) {
    const int t = q / kWords, word = q % kWords;
    visit(word * (32 / kBits), t, reinterpret_cast<unsigned*>(data + t * view.image.stride_w + word * 4));
  }
}

template <typename S, int kBits>
__device__ __forceinline__ void load_words(const CodeSource& source, const Span& span, StagedWorkshop<S>& shop) {
  float* rows = shop.staged();
  for_words<S, kBits>(source.view, span, [&](int c, int t, const unsigned* at) {
    const unsigned word = *at;
#pragma unroll
    for (int j = 0; j < 32 / kBits; ++j) {
      const Place end = shop.ends[c + j];
      const unsigned code = word >> (j * kBits) & ((1u << kBits) - 1);
      rows[end.at + t] =
          kBits == 8 ? fmaf(static_cast<float>(code), source.levels.step, end.add) : shop.levels[code & 15u] + end.add;
    }
  });
}

template <typename S, int kBits>
__device__ __forceinline__ void store_words(const CodeResult& result, const Span& span, StagedWorkshop<S>& shop) {
  const float* rows = shop.staged();
  for_words<S, kBits>(result.view, span, [&](int c, int t, unsigned* at) {
    const float gain = shop.gains[t];
    unsigned word = 0;
#pragma unroll
    for (int j = 0; j < 32 / kBits; ++j) {
      const Place end = shop.ends[c + j];
      const unsigned cell = byte_of(fmaf(rows[end.at + t], gain, end.add));
      word |= (kBits == 8 ? cell : shop.table[cell]) << (j * kBits);
    }
    *at = word;
  });
}

template <typename S, bool kInverse, typename T>
__device__ __forceinline__ void load_staged(const Plan& plan, const FloatSource<T>& source, const Span& span,
                                            StagedWorkshop<S>& shop) {
  if (has_vectors(source.view)) return load_vectors<S, kInverse>(source, span, shop);
  source.template load<S::kWide, S::kPitch>(plan, span, shop.staged());
}

template <typename S, bool kInverse>
__device__ __forceinline__ void load_staged(const Plan& plan, const CodeSource& source, const Span& span,
                                            StagedWorkshop<S>& shop) {
  if (!has_vectors(source.view)) return source.load<S::kWide, S::kPitch>(plan, span, shop.staged());
  if (source.levels.bits == 8) return load_words<S, 8>(source, span, shop);
  if (source.levels.bits == 4) return load_words<S, 4>(source, span, shop);
  load_words<S, 2>(source, span, shop);
}

template <typename S, bool kInverse, typename T>
__device__ __forceinline__ void store_staged(const Plan& plan, const FloatResult<T>& result, const Span& span,
                                             StagedWorkshop<S>& shop) {
  if (has_vectors(result.view)) return store_vectors<S, kInverse>(result, span, shop);
  result.template store<S::kWide, S::kPitch>(plan, span, kInverse ? nullptr : plan.offset, 0, S::kDim, shop.staged(),
                                             shop.gains);
}

template <typename S, bool kInverse>
__device__ __forceinline__ void store_staged(const Plan& plan, const CodeResult& result, const Span& span,
                                             StagedWorkshop<S>& shop) {
  if (!has_vectors(result.view))
    return result.store<S::kWide, S::kPitch>(plan, span, 0, S::kDim, shop.staged(), shop.gains, shop.table);
  if (result.cells.bits == 8) return store_words<S, 8>(result, span, shop);
  if (result.cells.bits == 4) return store_words<S, 4>(result, span, shop);
  store_words<S, 2>(result, span, shop);
}

// The whole way from `source` to `result`. A lane's rows are its own between barriers, so each result can lie where its
// row was; it is multiplied by its gain when it leaves.
template <typename S, bool kInverse, typename Source, typename Result>
__device__ __forceinline__ void mix_staged(const Rounds& rounds, const Plan& plan, const Span& span,
                                           const Source& source, const Result& result, StagedWorkshop<S>& shop) {
  constexpr int kWide = S::kWide;
  shop.fill_ends(rounds);
  if (kInverse) {
    __syncthreads();
  }
  load_staged<S, kInverse>(plan, source, span, shop);
  __syncthreads();
  float* staged = shop.staged();
  const auto row = [&](int d) { return reinterpret_cast<Floats<kWide>*>(staged + d * S::kPitch) + place_of<S>(); };
  const auto read = [&](int d) { return *row(d); };
  const auto write = [&](int d, const Floats<kWide>& value, const Floats<kWide>&) { *row(d) = value; };
  Floats<kWide> gain;
  if constexpr (kInverse) {
#pragma unroll
    for (int i = 0; i < kWide; ++i) gain.at[i] = rounds.scale;
    unmix_planes<S>(rounds, 0, shop, read, write);
  } else {
    gain = mix_planes<S>(rounds, 0, shop, read, write);
  }
#pragma unroll
  for (int i = 0; i < kWide; ++i) shop.gains[place_of<S>() * kWide + i] = gain.at[i];
  __syncthreads();
  store_staged<S, kInverse>(plan, result, span, shop);
}

}  // namespace ppcmi::cuda

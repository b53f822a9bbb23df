// The dense mixing of up to 128 channels that lie as planes, by warps alone. product.cuh's tiles pass through shared
// memory and each block splits the matrix anew; here rows go straight between an image and registers, and a block keeps
// the halves of its matrix, in the order of fragments, over as many tiles as it can.
//
// Sums are product.cuh's in the same order, so a float image of another form gives the same floats and codes bit by
// bit. From 8-bit codes the product is that of the codes, which TF32 holds, instead of the levels, which it does not:
// results differ in their last bits from those of other forms.
#pragma once

#include "product.cuh"
#include "warp_planes.cuh"

namespace ppcmi::cuda {

constexpr int kMostRows = 128;  // results

// result i = gain * (matrix (source - source_offset))[i] + scale_of_offset * offset[i] + shift, where the gain is the
// scale, or over the root mean square of a source vector.
struct Dense {
  const float* matrix;  // null: the mixing is of another kind
  int outputs, dim;
  bool transposed, normalize;
  const float *source_offset, *offset;  // or null
  float scale_of_offset, shift, scale, inverse_dim;
  float middle_level;  // of codes
  // Of a matrix, and of offsets, for each sample; null: one for all.
  const std::int64_t* index;
  std::int64_t count;
};

inline Dense dense_of(const Plan& plan) {
  Dense dense{};
  dense.matrix = plan.matrix;
  dense.outputs = plan.outputs;
  dense.dim = plan.dim;
  dense.transposed = plan.transposed;
  dense.normalize = plan.normalize;
  (plan.inverse ? dense.source_offset : dense.offset) = plan.offset;
  dense.scale_of_offset = 1.0f;
  dense.scale = plan.scale;
  dense.inverse_dim = plan.inverse_dim;
  return dense;
}

inline void take_levels(const Levels& levels, Dense& dense) {
  dense.scale *= levels.step;
  dense.middle_level = levels.first + kMiddleCode * levels.step;
}

// A tile's sample and first position.
struct TilePlace {
  unsigned n;
  std::int64_t first;
};

// Which tiles a block's warps share with those of `blocks` blocks: those of a sample with a matrix of its own, or all.
struct Work {
  unsigned tiles_of_sample, tiles, blocks;
};

// A block's shared memory.
template <typename F>
struct Desk {
  Floats<4>* fragments;  // [rows / 16][kSteps][high, low][lane]
  float *shifts, *source_offsets;

  __device__ __forceinline__ Desk(float* memory, int tiles)
      : fragments(reinterpret_cast<Floats<4>*>(memory)),
        shifts(memory + tiles * F::kSteps * 256),
        source_offsets(shifts + 16 * tiles) {}

  static std::size_t bytes(int tiles) {
    return static_cast<std::size_t>(tiles * F::kSteps * 256 + 16 * tiles + 8 * F::kSteps) * sizeof(float);
  }

  __device__ __forceinline__ Floats<4>* fragment(int tile, int k) const {
    return fragments + (tile * F::kSteps + k) * 64 + threadIdx.x % 32;
  }

  __device__ __forceinline__ void fill(const Dense& dense, const Weights& weights, const float* offset, int tiles) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll 4
    for (int i = warp; i < tiles * F::kSteps; i += F::kCrew / 32) {
      const Split<FragmentA> a(weights.fragment(i / F::kSteps * 16, i % F::kSteps * 8));
      Floats<4>* const to = fragment(i / F::kSteps, i % F::kSteps);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        to[0].at[k] = a.high.at[k];
        to[32].at[k] = a.low.at[k];
      }
    }
#pragma unroll 4
    for (int i = warp; i < 16 * tiles; i += F::kCrew / 32) {
      float shift =
          offset && i < dense.outputs ? fmaf(__ldg(offset + i), dense.scale_of_offset, dense.shift) : dense.shift;
      if constexpr (sizeof(typename F::In) == 1) shift += constant_part(dense, weights, i);
      shifts[i] = shift;
    }
    for (int d = static_cast<int>(threadIdx.x); d < 8 * F::kSteps; d += F::kCrew)
      source_offsets[d] = F::kShifted && dense.source_offset && d < dense.dim ? __ldg(dense.source_offset + d) : 0.0f;
  }

  // Of result i: the product for the middle code in every channel.
  __device__ __forceinline__ static float constant_part(const Dense& dense, const Weights& weights, int i) {
    float sum = 0.0f;
    for (int d = static_cast<int>(threadIdx.x) % 32; d < dense.dim; d += 32) {
      const float offset = dense.source_offset ? __ldg(dense.source_offset + d) : 0.0f;
      sum += weights.at(i, d) * (dense.middle_level - offset);
    }
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    return sum;
  }
};

// For the columns of which a lane has results, 2 t and 2 t + 1.
struct Gains {
  Floats<kRun> of[2];
};

template <typename F>
__device__ __forceinline__ Gains column_gains(const Dense& dense, float scale, const Vectors<F>& vectors,
                                              const float* source_offsets) {
  Gains gains;
  if (!dense.normalize) {
#pragma unroll
    for (int n = 0; n < kRun; ++n) gains.of[0].at[n] = gains.of[1].at[n] = scale;
    return gains;
  }
  const int t = static_cast<int>(threadIdx.x) % 4;
  float squares[2][kRun] = {}, mine = 0.0f;
#pragma unroll
  for (int k = 0; k < F::kSteps; ++k) {
    const FragmentB offset = vectors.offsets(k, source_offsets);
#pragma unroll
    for (int n = 0; n < kRun; ++n) {
      const FragmentB value = vectors.fragment(k, n, offset);
#pragma unroll
      for (int half = 0; half < 2; ++half) squares[half][n] += value.at[half] * value.at[half];
    }
  }
#pragma unroll
  for (int n = 0; n < kRun; ++n) {
    float sum = squares[0][n] + squares[1][n];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (n == t) mine = sum;  // each lane of four takes a root, of the position that has its number
  }
  const float gain = normalizing_gain(scale, mine * dense.inverse_dim);
#pragma unroll
  for (int column = 0; column < 2; ++column)
#pragma unroll
    for (int n = 0; n < kRun; ++n) gains.of[column].at[n] = __shfl_sync(0xffffffffu, gain, 8 * t + 4 * column + n);
  return gains;
}

// Sixteen rows of results, not yet multiplied by their gains.
template <typename F>
__device__ __forceinline__ void sixteen_rows(const Desk<F>& desk, int tile, const Vectors<F>& vectors,
                                             FragmentC (&sums)[kRun]) {
  FragmentC small[kRun] = {};
#pragma unroll
  for (int k = 0; k < F::kSteps; ++k) {
    const Floats<4>* const from = desk.fragment(tile, k);
    const Floats<4> first = from[0], second = from[32];
    const FragmentA high{{first.at[0], first.at[1], first.at[2], first.at[3]}};
    const FragmentA low{{second.at[0], second.at[1], second.at[2], second.at[3]}};
    const FragmentB offset = vectors.offsets(k, desk.source_offsets);
#pragma unroll
    for (int n = 0; n < kRun; ++n) {
      const FragmentB value = vectors.fragment(k, n, offset);
      if constexpr (F::kExact) {
        multiply_add(small[n], low, value);
        multiply_add(sums[n], high, value);
      } else {
        const Split<FragmentB> right(value);
        multiply_add(small[n], high, right.low);
        multiply_add(small[n], low, right.high);
        multiply_add(sums[n], high, right.high);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kRun; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n].at[i] += small[n].at[i];
}

// What a lane has of the tile's rows [16 * tile, 16 * tile + 16).
template <typename F>
__device__ __forceinline__ void store_rows(const Plane<typename F::Out>& result, const Dense& dense,
                                           const Desk<F>& desk, typename F::Out* first, int left, int tile,
                                           const FragmentC (&sums)[kRun], const Gains& gains) {
#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    const int row = 16 * tile + 8 * lower + static_cast<int>(threadIdx.x) % 32 / 4;
    if (row >= dense.outputs) continue;
    const float shift = desk.shifts[row];
    Floats<kRun> runs[2];
#pragma unroll
    for (int column = 0; column < 2; ++column)
#pragma unroll
      for (int n = 0; n < kRun; ++n)
        runs[column].at[n] = fmaf(sums[n].at[2 * lower + column], gains.of[column].at[n], shift);
    store_runs(first + row * result.next_channel, left, runs);
  }
}

template <typename F>
__global__ void __launch_bounds__(F::kCrew, F::kBlocks)
    warp_product_kernel(const Plane<const typename F::In> source, const Plane<typename F::Out> result,
                        const Dense dense, const Work work, const std::int64_t area) {
  PPCMI_DYNAMIC_SHARED(float, memory);
  const int row_tiles = (dense.outputs + 15) / 16, warp = static_cast<int>(threadIdx.x) / 32;
  const unsigned group = blockIdx.x / work.blocks, block = blockIdx.x % work.blocks;
  const std::int64_t asked = dense.index ? dense.index[group] : 0;
  const bool known = !dense.index || (asked >= 0 && asked < dense.count);
  const std::int64_t which = known ? asked : 0;
  const Weights weights{dense.matrix + which * dense.outputs * dense.dim, dense.transposed ? 1 : dense.dim,
                        dense.transposed ? dense.outputs : 1, dense.outputs, dense.dim};
  Desk<F> desk(memory, row_tiles);
  desk.fill(dense, weights, dense.offset ? dense.offset + which * dense.outputs : nullptr, row_tiles);
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x) % 32 / 4;
  // Where tile i lies, and a lane's part of it.
  const auto tile_at = [&](unsigned i) {
    const unsigned tile = group * work.tiles + i, n = tile / work.tiles_of_sample;
    return TilePlace{n, static_cast<std::int64_t>(tile - n * work.tiles_of_sample) * kStrip};
  };
  const auto vectors_of = [&](const TilePlace& place) {
    const std::int64_t position = place.first + start_of<typename F::Out>(column);
    return Vectors<F>(source, dense.dim, place.n, position, position < area);
  };
  const auto finish = [&](const TilePlace& place, Vectors<F>& vectors) {
    const Gains gains = column_gains(dense, known ? dense.scale : nanf(""), vectors, desk.source_offsets);
    const int left = static_cast<int>(area - place.first < kStrip ? area - place.first : kStrip);
    typename F::Out* const to = result.data + place.n * result.next_sample + place.first;
#pragma unroll 1
    for (int rows = 0; rows < row_tiles; ++rows) {
      FragmentC sums[kRun] = {};
      if constexpr (F::kForgets) vectors.forget(desk.source_offsets);
      sixteen_rows(desk, rows, vectors, sums);
      store_rows(result, dense, desk, to, left, rows, sums, gains);
      __syncwarp();  // the next product wants all lanes, of which some had nothing to store
    }
  };
  const unsigned stride = work.blocks * (F::kCrew / 32);
  unsigned i = block * (F::kCrew / 32) + warp;
  if constexpr (F::kAhead) {
    if (i >= work.tiles) return;
    TilePlace place = tile_at(i);
    Vectors<F> vectors = vectors_of(place);
    for (i += stride; i < work.tiles; i += stride) {
      const TilePlace next_place = tile_at(i);
      const Vectors<F> next = vectors_of(next_place);  // on its way while the other is computed
      finish(place, vectors);
      place = next_place;
      vectors = next;
    }
    finish(place, vectors);
  } else {
    for (; i < work.tiles; i += stride) {
      const TilePlace place = tile_at(i);
      Vectors<F> vectors = vectors_of(place);
      finish(place, vectors);
    }
  }
}

// Gives false where the device has not the shared memory.
template <typename F>
bool launch_warp_product(const Plane<const typename F::In>& source, const Plane<typename F::Out>& result,
                         const Dense& dense, std::int64_t n, std::int64_t area, cudaStream_t stream) {
  const std::size_t shared_bytes = Desk<F>::bytes((dense.outputs + 15) / 16);
  if (shared_bytes > most_shared_bytes()) return false;
  const std::int64_t groups = dense.index ? n : 1, of_sample = (area + kStrip - 1) / kStrip;
  const std::int64_t tiles = of_sample * (n / groups), room = F::kBlocks * multiprocessors();
  const std::int64_t wanted = (tiles + F::kCrew / 32 - 1) / (F::kCrew / 32), fair = (room + groups - 1) / groups;
  const std::int64_t blocks = wanted < fair ? wanted : fair;
  const Work work{static_cast<unsigned>(of_sample), static_cast<unsigned>(tiles), static_cast<unsigned>(blocks)};
  PPCMI_LAUNCH((warp_product_kernel<F>), dim3(static_cast<unsigned>(groups * blocks)), dim3(F::kCrew), shared_bytes,
               stream, source, result, dense, work, area);
  return true;
}

// Runs the product if the images and the matrix are of the forms that this way takes, and says whether they are.
template <typename In, typename Out>
bool warp_product(const Image& x, const Image& out, const Dense& dense, cudaStream_t stream) {
  Plane<const In> source;
  Plane<Out> result;
  const bool same_grid = x.h == out.h && x.w == out.w;
  const bool planes = plane_of(x, kRun, source) && plane_of(out, sizeof(Out) == 4 ? kRun : 2 * kRun, result);
  if (!dense.matrix || dense.outputs > kMostRows || !same_grid || !planes) return false;
  if (x.n * (x.h * x.w / kStrip + 1) > 0x3fffffff) return false;
  const auto run = [&](auto steps) {
    constexpr bool kHalves = sizeof(In) == 2 && sizeof(Out) == 2;
    if (kHalves && dense.source_offset)
      return launch_warp_product<Form<In, Out, steps.value, kHalves>>(source, result, dense, x.n, x.h * x.w, stream);
    return launch_warp_product<Form<In, Out, steps.value, false>>(source, result, dense, x.n, x.h * x.w, stream);
  };
  if (dense.dim <= 16) return run(std::integral_constant<int, 2>{});
  if (dense.dim <= 32) return run(std::integral_constant<int, 4>{});
  if (dense.dim <= 64) return run(std::integral_constant<int, 8>{});
  if (dense.dim <= 128) return run(std::integral_constant<int, 16>{});
  return false;
}

}  // namespace ppcmi::cuda

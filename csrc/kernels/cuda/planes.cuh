// The structured mixing of 16 to 512 channels in two rounds: what most calls ask for, with a third of the general way's
// instructions and next to none of its waiting. Images whose channels are planes meet registers without a detour;
// others pass through shared memory (staged.cuh) and give the same results bit by bit.
//
// All sizes are known to the compiler. Up to 64 channels a lane holds the whole vectors of its positions in registers,
// which takes no barrier between stages and keeps a load for every channel under way. From 128 on the vectors cross
// shared memory twice: the low stages lie on one side of it, the high stages of both rounds on the other.
#pragma once

#include "mixing.cuh"

namespace ppcmi::cuda {

// 2^(kLow + kHigh) channels, kWide positions a lane, kBlocks blocks on a multiprocessor: what registers without spills
// leave room for.
template <int kLowBits, int kHighBits, int kWidth, int kResident>
struct Shape {
  static constexpr int kLow = kLowBits, kHigh = kHighBits, kWide = kWidth, kBlocks = kResident;
  static constexpr int kDim = 1 << (kLow + kHigh);
  static constexpr bool kAlone = kHigh == 0;  // a lane does without the others
  static_assert(kAlone || 1 << kHigh >= kWarps, "every warp comes to the first barrier");
  static constexpr int kLowRows = 1 << kLow, kHighRows = 1 << kHigh;
  static constexpr int kPositions = 32 * kWide * (kAlone ? kWarps : 1);  // of a block
  // Of rows in shared memory: the pad lets channels-last images in without two lanes meeting in a bank.
  static constexpr int kPitch = kPositions + 2;
};

// A lane's place among those that have positions of a block.
template <typename S>
__device__ __forceinline__ int place_of() {
  return static_cast<int>(S::kAlone ? threadIdx.x : threadIdx.x % 32);
}

// The key material. The permuted side of the mixing, the result of the way forward and the source of the way back, has
// scale_of_offset * offset + shift added in each channel.
struct Rounds {
  const float *outer, *inner;  // signs: at the other side, and between the rounds
  const std::int64_t* perm;
  const float* offset;  // or null
  float scale_of_offset, shift;
  float scale;  // of the result
  bool normalize;

  __device__ __forceinline__ float added_to(int channel) const {
    return fmaf(offset ? __ldg(offset + channel) : 0.0f, scale_of_offset, shift);
  }
};

inline Rounds rounds_of(const Material& m, float scale_of_offset, float shift, float scale, bool normalize) {
  return {m.mix, m.mix + m.dim, m.perm, m.offset, scale_of_offset, shift, scale / static_cast<float>(m.dim), normalize};
}

// Positions of a sample's channel lie next to each other, channels `next_channel` elements apart.
template <typename T>
struct Planes {
  T* data;
  std::int64_t next_sample;
  int next_channel;
};

// False where the image is of another form. `wide` elements move in one access.
template <typename T>
bool planes_of(const Image& image, std::int64_t area, int wide, Planes<T>& planes) {
  const bool dense = image.stride_w == 1 && (image.stride_h == image.w || image.h == 1) && image.h * image.w == area;
  const auto whole = [&](std::int64_t stride) { return stride % wide == 0; };
  const bool aligned = reinterpret_cast<std::uintptr_t>(image.data) % (sizeof(T) * static_cast<std::size_t>(wide)) == 0;
  const bool near = image.c * image.stride_c <= 0x7fffffff;
  planes = {static_cast<T*>(image.data), image.stride_n, static_cast<int>(image.stride_c)};
  return dense && aligned && near && whole(area) && whole(image.stride_c) && whole(image.stride_n);
}

template <int kWide, typename T>
__device__ __forceinline__ Floats<kWide> floats_at(const T* data) {
  const auto packed = *reinterpret_cast<const Packed<T, kWide>*>(data);
  Floats<kWide> value;
#pragma unroll
  for (int i = 0; i < kWide; ++i) value.at[i] = to_float(packed.at[i]);
  return value;
}

// value * gain + add.
template <int kWide, typename T>
__device__ __forceinline__ void set_floats(T* data, const Floats<kWide>& value, const Floats<kWide>& gain, float add) {
  Packed<T, kWide> packed;
#pragma unroll
  for (int i = 0; i < kWide; ++i) from_float(fmaf(value.at[i], gain.at[i], add), packed.at[i]);
  *reinterpret_cast<Packed<T, kWide>*>(data) = packed;
}

// Where the permuted side has the channel of a row, and what is added there.
struct Place {
  int at;
  float add;
};

// A block's shared memory.
template <typename S>
struct Workshop {
  alignas(16) float outer[S::kDim];
  alignas(16) float inner[S::kDim];  // those of a group of high stages next to each other
  alignas(16) Place places[S::kDim];
  alignas(16) float squares[S::kAlone ? 1 : kWarps * S::kPitch];
  alignas(16) float rows[S::kAlone ? 1 : S::kDim * S::kPitch];

  __device__ __forceinline__ void fill(const Rounds& rounds, int next_channel) {
    for (int d = static_cast<int>(threadIdx.x); d < S::kDim; d += kThreads) {
      outer[d] = __ldg(rounds.outer + d);
      inner[d % S::kLowRows * S::kHighRows + d / S::kLowRows] = __ldg(rounds.inner + d);
      places[__ldg(rounds.perm + d)] = {d * next_channel, rounds.added_to(d)};
    }
  }

  __device__ __forceinline__ Floats<S::kWide>* row(int d) {
    return reinterpret_cast<Floats<S::kWide>*>(rows + d * S::kPitch) + place_of<S>();
  }

  __device__ __forceinline__ Floats<S::kWide>* squares_of(int warp) {
    return reinterpret_cast<Floats<S::kWide>*>(squares + warp * S::kPitch) + place_of<S>();
  }
};

// A sample, and where the positions of a block or a lane begin in it.
struct Seat {
  std::int64_t n, first;

  template <typename T>
  __device__ __forceinline__ T* in(const Planes<T>& planes) const {
    return planes.data + n * planes.next_sample + first;
  }
};

template <typename S>
__device__ __forceinline__ Seat seat_of_block(std::int64_t area) {
  const auto tiles = static_cast<unsigned>((area + S::kPositions - 1) / S::kPositions);
  const unsigned n = blockIdx.x / tiles;
  return {n, static_cast<std::int64_t>(blockIdx.x - n * tiles) * S::kPositions};
}

// Of a lane. Where the image has no more, it has the last positions again: it writes what another lane writes, which
// costs less than asking before each write.
template <typename S>
__device__ __forceinline__ Seat seat_of(std::int64_t area) {
  const Seat block = seat_of_block<S>(area);
  const std::int64_t first = block.first + place_of<S>() * S::kWide;
  return {block.n, first < area ? first : area - S::kWide};
}

template <int kBits, int kWide>
__device__ __forceinline__ void transform(Floats<kWide> (&v)[1 << kBits]) {
#pragma unroll
  for (int span = 1; span < 1 << kBits; span *= 2) sums_and_differences<kBits, kWide>(v, span);
}

// After signs, which join the first stage's multiply-adds.
template <int kBits, int kWide>
__device__ __forceinline__ void transform(Floats<kWide> (&v)[1 << kBits], const float* signs) {
#pragma unroll
  for (int k = 0; k < 1 << kBits; k += 2) {
    const auto sign = *reinterpret_cast<const Floats<2>*>(signs + k);
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const float a = v[k].at[i], b = sign.at[1] * v[k + 1].at[i];
      v[k].at[i] = sign.at[0] * a + b;
      v[k + 1].at[i] = sign.at[0] * a - b;
    }
  }
#pragma unroll
  for (int span = 2; span < 1 << kBits; span *= 2) sums_and_differences<kBits, kWide>(v, span);
}

template <int kCount, int kWide>
__device__ __forceinline__ void add_squares(const Floats<kWide> (&v)[kCount], Floats<kWide>& sum) {
  Floats<kWide> sums[4] = {};  // four chains round less than one, and wait less
#pragma unroll
  for (int k = 0; k < kCount; ++k)
#pragma unroll
    for (int i = 0; i < kWide; ++i) sums[k % 4].at[i] += v[k].at[i] * v[k].at[i];
#pragma unroll
  for (int i = 0; i < kWide; ++i) sum.at[i] += (sums[0].at[i] + sums[1].at[i]) + (sums[2].at[i] + sums[3].at[i]);
}

// What the results of the way forward are multiplied by.
template <int kDim, int kWide>
__device__ __forceinline__ Floats<kWide> gains_of(const Rounds& rounds, const Floats<kWide>& squares) {
  Floats<kWide> gain;
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    const float mean = squares.at[i] * (1.0f / kDim);
    gain.at[i] = rounds.normalize ? normalizing_gain(rounds.scale, mean) : rounds.scale;
  }
  return gain;
}

// The high stages of both rounds, the inner signs between them, on the rows in shared memory.
template <typename S>
__device__ __forceinline__ void high_stages(Workshop<S>& shop) {
  __syncthreads();
#pragma unroll 1
  for (int group = static_cast<int>(threadIdx.x) / 32; group < S::kLowRows; group += kWarps) {
    Floats<S::kWide> v[S::kHighRows];
#pragma unroll
    for (int k = 0; k < S::kHighRows; ++k) v[k] = *shop.row(group + k * S::kLowRows);
    transform<S::kHigh, S::kWide>(v);
    transform<S::kHigh, S::kWide>(v, shop.inner + group * S::kHighRows);
#pragma unroll
    for (int k = 0; k < S::kHighRows; ++k) *shop.row(group + k * S::kLowRows) = v[k];
  }
  __syncthreads();
}

// The second round's low stages; finish(d, value) takes row d.
template <typename S, typename Finish>
__device__ __forceinline__ void low_stages(Workshop<S>& shop, const Finish& finish) {
#pragma unroll 1
  for (int group = static_cast<int>(threadIdx.x) / 32; group < S::kHighRows; group += kWarps) {
    Floats<S::kWide> v[S::kLowRows];
#pragma unroll
    for (int k = 0; k < S::kLowRows; ++k) v[k] = *shop.row(group * S::kLowRows + k);
    transform<S::kLow, S::kWide>(v);
#pragma unroll
    for (int k = 0; k < S::kLowRows; ++k) finish(group * S::kLowRows + k, v[k]);
  }
}

// The way forward; gives what results are to be multiplied by. read(d) gives the lane's positions of channel d;
// write(d, value, gain) takes row d, whose place is shop.places[d].
template <typename S, typename Read, typename Write>
__device__ __forceinline__ Floats<S::kWide> mix_planes(const Rounds& rounds, int next_channel, Workshop<S>& shop,
                                                       const Read& read, const Write& write) {
  constexpr int kWide = S::kWide, kLowRows = S::kLowRows, kHighRows = S::kHighRows;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Floats<kWide> squares{}, gain;
#pragma unroll 1
  for (int group = S::kAlone ? 0 : warp; group < kHighRows; group += kWarps) {
    Floats<kWide> v[kLowRows];
#pragma unroll
    for (int k = 0; k < kLowRows; ++k) v[k] = read(group * kLowRows + k);
    if (S::kAlone || group == warp) {  // while the first rows are on their way
      shop.fill(rounds, next_channel);
      __syncthreads();
    }
    add_squares(v, squares);
    transform<S::kLow, kWide>(v, shop.outer + group * kLowRows);
    if constexpr (S::kAlone) {
      gain = gains_of<S::kDim>(rounds, squares);
      transform<S::kLow, kWide>(v, shop.inner);
#pragma unroll
      for (int k = 0; k < kLowRows; ++k) write(k, v[k], gain);
    } else {
#pragma unroll
      for (int k = 0; k < kLowRows; ++k) *shop.row(group * kLowRows + k) = v[k];
    }
  }
  if constexpr (!S::kAlone) {
    *shop.squares_of(warp) = squares;
    high_stages<S>(shop);
    squares = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const Floats<kWide> part = *shop.squares_of(w);
#pragma unroll
      for (int i = 0; i < kWide; ++i) squares.at[i] += part.at[i];
    }
    gain = gains_of<S::kDim>(rounds, squares);
    low_stages<S>(shop, [&](int d, const Floats<kWide>& value) { write(d, value, gain); });
  }
  return gain;
}

// The way back. read(d) gives the lane's positions of the channel at shop.places[d], with what is added there;
// write(d, value, gain) takes result d.
template <typename S, typename Read, typename Write>
__device__ __forceinline__ void unmix_planes(const Rounds& rounds, int next_channel, Workshop<S>& shop,
                                             const Read& read, const Write& write) {
  constexpr int kWide = S::kWide, kLowRows = S::kLowRows;
  shop.fill(rounds, next_channel);
  __syncthreads();
  const auto finish = [&](int d, const Floats<kWide>& value) {
    Floats<kWide> gain;
#pragma unroll
    for (int i = 0; i < kWide; ++i) gain.at[i] = rounds.scale * shop.outer[d];
    write(d, value, gain);
  };
#pragma unroll 1
  for (int group = S::kAlone ? 0 : static_cast<int>(threadIdx.x) / 32; group < S::kHighRows; group += kWarps) {
    Floats<kWide> v[kLowRows];
#pragma unroll
    for (int k = 0; k < kLowRows; ++k) v[k] = read(group * kLowRows + k);
    transform<S::kLow, kWide>(v);
    if constexpr (S::kAlone) {
      transform<S::kLow, kWide>(v, shop.inner);
#pragma unroll
      for (int k = 0; k < kLowRows; ++k) finish(k, v[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kLowRows; ++k) *shop.row(group * kLowRows + k) = v[k];
    }
  }
  if constexpr (!S::kAlone) {
    high_stages<S>(shop);
    low_stages<S>(shop, finish);
  }
}

// Calls run(Shape) with the shape that suits the material; false where there is none.
template <typename Run>
bool with_shape(const Material& m, std::int64_t n, std::int64_t area, const Run& run) {
  if (m.rounds != 2 || m.odd != 1 || n * (area / 32 + 1) > 0x7fffffff) return false;
  switch (m.dim) {
    case 16:
      run(Shape<4, 0, 2, 4>{});
      return true;
    case 32:
      run(Shape<5, 0, 2, 2>{});
      return true;
    case 64:
      run(Shape<6, 0, 1, 2>{});
      return true;
    case 128:
      run(Shape<4, 3, 2, 3>{});
      return true;
    case 256:
      run(Shape<5, 3, 2, 2>{});
      return true;
    case 512:
      run(Shape<5, 4, 1, 2>{});
      return true;
    default:
      return false;
  }
}

template <typename S>
dim3 blocks_of(std::int64_t n, std::int64_t area) {
  return dim3(static_cast<unsigned>(n * ((area + S::kPositions - 1) / S::kPositions)));
}

}  // namespace ppcmi::cuda

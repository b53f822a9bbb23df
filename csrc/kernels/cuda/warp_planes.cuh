// Images that lie as planes between memory and the registers of a warp, as the tensor cores' product has them there.
//
// A product's columns may be any positions. Column g of the n-th product of a warp's tile is position n of run g, so
// what lane 4 g + t needs of a channel for all products is one run of positions, next to each other: an access. Of the
// results a lane gets the runs of columns 2 t and 2 t + 1: an access or two again.
#pragma once

#include <cstring>

#include "images.cuh"
#include "mma.cuh"

namespace ppcmi::cuda {

constexpr int kRun = 4;                // positions of a column
constexpr int kStrip = 8 * kRun;       // positions of a warp's tile
constexpr float kMiddleCode = 128.0f;  // what 8-bit codes are counted from

// Positions of a sample's channel lie next to each other.
template <typename T>
struct Plane {
  T* data;
  std::int64_t next_sample, next_channel;
};

// False where the image is of another form. `wide` elements move in one access.
template <typename T>
bool plane_of(const Image& image, int wide, Plane<T>& plane) {
  const bool dense = image.stride_w == 1 && (image.stride_h == image.w || image.h == 1);
  const auto whole = [&](std::int64_t stride) { return stride % wide == 0; };
  const bool aligned = reinterpret_cast<std::uintptr_t>(image.data) % (sizeof(T) * static_cast<std::size_t>(wide)) == 0;
  plane = {static_cast<T*>(image.data), image.stride_n, image.stride_c};
  return dense && aligned && whole(image.h * image.w) && whole(image.stride_c) && whole(image.stride_n);
}

// The kernel for 8 * kStepCount channels at most.
template <typename Source, typename Result, int kStepCount, bool kSubtracts>
struct Form {
  using In = Source;
  using Out = Result;
  static constexpr int kSteps = kStepCount;
  static constexpr bool kShifted = kSubtracts || sizeof(In) == 4;  // source_offsets are taken from the source
  static constexpr bool kExact = !kShifted;                        // TF32 holds what the product reads
  // As many warps as have the registers that they need, in the fewest copies of the matrix: 20, 16, 12 or 8.
  static constexpr bool kWhole = kSteps > 4;  // one block alone
  static constexpr int kCrew = kSteps <= 2 ? 128 : !kWhole || (kSteps > 8 && kShifted) ? 256 : 384;
  static constexpr int kBlocks = kSteps <= 2 ? 5 : kWhole ? 1 : 2;
  static constexpr bool kAhead = kExact && kSteps <= 8;  // registers hold the next tile's vectors, too
  // The compiler keeps what exact vectors are in TF32 from one row to the next, where that many registers are left.
  static constexpr bool kForgets = kExact && kSteps > 8;
};

// A run as it was read.
template <typename T>
struct alignas(kRun * sizeof(T)) Run {
  static constexpr int kWords = kRun * sizeof(T) / 4;
  unsigned words[kWords];

  __device__ __forceinline__ float at(int n) const {
    if constexpr (sizeof(T) == 1) {
      // 2^23 with a byte for its last bits is 2^23 + byte: less work than a conversion.
      return __uint_as_float(__byte_perm(words[0], 0x4b000000u, 0x7440u + static_cast<unsigned>(n))) -
             (8388608.0f + kMiddleCode);
    } else {
      T values[kRun];
      std::memcpy(values, words, sizeof values);
      return to_float(values[n]);
    }
  }
};

__device__ __forceinline__ auto pair_of(float a, float b, __half) { return __floats2half2_rn(a, b); }
__device__ __forceinline__ auto pair_of(float a, float b, __nv_bfloat16) { return __floats2bfloat162_rn(a, b); }

// Values, rounded to the type, as they lie in memory.
template <typename T>
__device__ __forceinline__ unsigned word_of(const float* values) {
  if constexpr (std::is_same_v<T, float>) {
    return __float_as_uint(values[0]);
  } else if constexpr (std::is_same_v<T, std::uint8_t>) {
    return byte_of(values[0]) | byte_of(values[1]) << 8 | byte_of(values[2]) << 16 | byte_of(values[3]) << 24;
  } else {
    unsigned word;
    const auto pair = pair_of(values[0], values[1], T{});
    std::memcpy(&word, &pair, sizeof word);
    return word;
  }
}

// In one access: what the compiler makes of an assignment falls apart into words.
#ifdef PPCMI_HOST_SHIM
template <int kWords>
void store_at_once(void* to, const unsigned (&words)[kWords]) {
  std::memcpy(to, words, sizeof words);
}
#else
__device__ __forceinline__ void store_at_once(void* to, const unsigned (&words)[2]) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]), "r"(words[1]));
}

__device__ __forceinline__ void store_at_once(void* to, const unsigned (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3]));
}
#endif

// Where a column's run begins in a tile. A row's results then leave a warp in whole sectors of 32 bytes: either the
// lane's two runs make one access, or neighbouring lanes have neighbouring runs.
template <typename Out>
__device__ __forceinline__ int start_of(int column) {
  return kRun * (sizeof(Out) == 4 ? column % 2 * 4 + column / 2 : column);
}

// A lane's source vectors: channels 8 k + t and 8 k + t + 4 at the positions of a run.
template <typename F>
struct Vectors {
  Run<typename F::In> runs[F::kSteps][2];

  __device__ __forceinline__ Vectors(const Plane<const typename F::In>& source, int dim, unsigned n,
                                     std::int64_t position, bool there) {
    const int t = static_cast<int>(threadIdx.x) % 4;
    const auto* data = source.data + n * source.next_sample + t * source.next_channel + position;
#pragma unroll
    for (int k = 0; k < F::kSteps; ++k)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        runs[k][half] = {};
        if (there && 8 * k + 4 * half + t < dim) runs[k][half] = *reinterpret_cast<const Run<typename F::In>*>(data);
        data += 4 * source.next_channel;
      }
  }

  // Hides from the compiler that the vectors stay what they are; `zeros` are.
  __device__ __forceinline__ void forget(const volatile float* zeros) {
    const unsigned zero = __float_as_uint(zeros[0]);
#pragma unroll
    for (int k = 0; k < F::kSteps; ++k)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < Run<typename F::In>::kWords; ++i) runs[k][half].words[i] ^= zero;
  }

  // What is taken from the fragments of k. Volatile, so that the compiler reads it anew for each row: the differences,
  // and the halves that they are split in, are more than there are registers.
  __device__ __forceinline__ static FragmentB offsets(int k, const volatile float* source_offsets) {
    if constexpr (!F::kShifted) return {};
    const int t = static_cast<int>(threadIdx.x) % 4;
    return {{source_offsets[8 * k + t], source_offsets[8 * k + t + 4]}};
  }

  __device__ __forceinline__ FragmentB fragment(int k, int n, const FragmentB& offset) const {
    FragmentB b{{runs[k][0].at(n), runs[k][1].at(n)}};
    if constexpr (F::kShifted)
#pragma unroll
      for (int half = 0; half < 2; ++half) b.at[half] -= offset.at[half];
    return b;
  }
};

// Results of a lane in one row: `at` is where the tile begins there, `left` how many positions the image still has.
template <typename Out>
__device__ __forceinline__ void store_runs(Out* at, int left, const Floats<kRun> (&runs)[2]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  constexpr int kRuns = sizeof(Out) == 4 ? 1 : 2;  // of an access
#pragma unroll
  for (int column = 0; column < 2; column += kRuns) {
    const int start = start_of<Out>(2 * t + column);
    if (start >= left) continue;
    constexpr int kInWord = 4 / sizeof(Out), kWords = kRuns * kRun / kInWord;
    float values[kRuns * kRun];
    unsigned words[kWords];
#pragma unroll
    for (int i = 0; i < kRuns * kRun; ++i) values[i] = runs[column + i / kRun].at[i % kRun];
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = word_of<Out>(values + w * kInWord);
    store_at_once(at + start, words);
  }
}

}  // namespace ppcmi::cuda

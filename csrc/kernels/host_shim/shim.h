// The part of CUDA's language that the kernels use, for a host compiler. A block's threads run as fibers on the calling
// OS thread, one block after another; they change places only at barriers, warp collectives and their end.
// What this can show and what it cannot: csrc/README.md, "Running CUDA kernels without a GPU".
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#include "types.h"

// `__shared__` is left out on purpose: kernels use dynamic shared memory alone, which the shim can size and poison.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // a launch of the shim throws instead

extern __thread uint3 threadIdx;
extern __thread uint3 blockIdx;
extern __thread dim3 blockDim;
extern __thread dim3 gridDim;

namespace ppcmi::shim {

// In which order threads, and blocks, get to run. `shuffled` draws anew at every barrier and collective.
enum class Order { forward, reverse, shuffled };

// Holds for every later launch of the process; `seed` is used by Order::shuffled alone.
void set_order(Order order, std::uint64_t seed = 0);

// Where a barrier or collective stands in the source.
struct Site {
  const char* file;
  int line;
};
inline Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

struct Collective {
  const char* name;
  unsigned mask;
  Site site;
};

// Runs the whole grid; `kernel` is called once a thread. Throws std::runtime_error for a launch that a GPU would refuse
// and for misused barriers and collectives; what a kernel throws comes out as it is. `launch`: for messages.
void run_grid(Site launch, dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel);

void* shared_memory();
int lane_of_caller();
void block_barrier(Site site);

// Each lane of the mask gives `words` words and gets those of all lanes, `gathered` [32][words]; lanes outside: 0xff.
void exchange(const Collective& collective, int words, const std::uint32_t* mine, std::uint32_t* gathered);

[[noreturn]] void refuse_shuffle(const Collective& collective, const char* argument, int value, const char* expected);

inline void check_width(const Collective& collective, int width) {
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) {
    refuse_shuffle(collective, "width", width, "a power of two, 1 to 32");
  }
}

template <typename T>
T take_from_lane(const Collective& collective, T value, int source) {
  static_assert(sizeof(T) == 4, "shuffles move 32-bit values: int, unsigned or float");
  const std::uint32_t mine = bit_cast<std::uint32_t>(value);
  std::uint32_t gathered[kWarpSize];
  exchange(collective, 1, &mine, gathered);
  if ((collective.mask >> source & 1) == 0) {
    refuse_shuffle(collective, "source lane", source, "a lane that the mask names; others hold no defined value");
  }
  return bit_cast<T>(gathered[source]);
}

// The predicates of the lanes in the mask, a bit a lane.
inline unsigned ballot(const Collective& collective, int predicate) {
  const std::uint32_t mine = predicate != 0;
  std::uint32_t gathered[kWarpSize];
  exchange(collective, 1, &mine, gathered);
  unsigned bits = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (collective.mask >> lane & 1) bits |= gathered[lane] << lane;
  }
  return bits;
}

}  // namespace ppcmi::shim

namespace ppcmi::cuda {

// A collective of the whole warp: every lane gets every lane's words.
template <int Words>
void warp_exchange(const std::uint32_t (&mine)[Words], std::uint32_t (&all)[32][Words],
                   shim::Site site = shim::here()) {
  shim::exchange({"warp_exchange", shim::kFullMask, site}, Words, mine, &all[0][0]);
}

// One, so that blocks which share out the work each get several parts of it.
inline int multiprocessors() { return 1; }
inline std::size_t most_shared_bytes() { return 163 << 10; }

// `where` and `line` name the launch in messages.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t, const char* where,
            int line, const Args&... args) {
  // Every thread gets arguments of its own, as on a GPU: by value.
  shim::run_grid({where, line}, grid, block, shared_bytes, [&] { kernel(args...); });
}

}  // namespace ppcmi::cuda

#define PPCMI_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::ppcmi::shim::shared_memory())

inline void __syncthreads(ppcmi::shim::Site site = ppcmi::shim::here()) { ppcmi::shim::block_barrier(site); }

inline void __syncwarp(unsigned mask = ppcmi::shim::kFullMask, ppcmi::shim::Site site = ppcmi::shim::here()) {
  ppcmi::shim::exchange({"__syncwarp", mask, site}, 0, nullptr, nullptr);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, ppcmi::shim::Site site = ppcmi::shim::here()) {
  const ppcmi::shim::Collective collective{"__shfl_sync", mask, site};
  ppcmi::shim::check_width(collective, width);
  const int first = ppcmi::shim::lane_of_caller() & -width;
  return ppcmi::shim::take_from_lane(collective, value, first + (source & (width - 1)));
}

// As on a GPU, a lane of a later group of `width` is out of reach and gives the caller its own value; an earlier is
// not.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, ppcmi::shim::Site site = ppcmi::shim::here()) {
  const ppcmi::shim::Collective collective{"__shfl_xor_sync", mask, site};
  ppcmi::shim::check_width(collective, width);
  const int lane = ppcmi::shim::lane_of_caller(), last = lane | (width - 1);
  const int source = lane ^ (lane_mask & (ppcmi::shim::kWarpSize - 1));
  return ppcmi::shim::take_from_lane(collective, value, source > last ? lane : source);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   ppcmi::shim::Site site = ppcmi::shim::here()) {
  const ppcmi::shim::Collective collective{"__shfl_down_sync", mask, site};
  ppcmi::shim::check_width(collective, width);
  const int lane = ppcmi::shim::lane_of_caller(), last = lane | (width - 1);
  const int source = lane + static_cast<int>(delta & (ppcmi::shim::kWarpSize - 1));
  return ppcmi::shim::take_from_lane(collective, value, source > last ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, ppcmi::shim::Site site = ppcmi::shim::here()) {
  return ppcmi::shim::ballot({"__ballot_sync", mask, site}, predicate);
}

inline int __any_sync(unsigned mask, int predicate, ppcmi::shim::Site site = ppcmi::shim::here()) {
  return ppcmi::shim::ballot({"__any_sync", mask, site}, predicate) != 0;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
// As on a GPU, what unsigned cannot hold becomes the nearest that it can.
inline unsigned __float2uint_rz(float value) {
  if (!(value > 0.0f)) return 0;
  return value < 4294967296.0f ? static_cast<unsigned>(value) : 0xffffffffu;
}
inline unsigned __float_as_uint(float value) { return ppcmi::shim::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return ppcmi::shim::bit_cast<float>(bits); }

// Four bytes of the eight that `low` and `high` have, each chosen by three bits of four of `selector`.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  unsigned chosen = 0;
  for (int i = 0; i < 4; ++i) {
    chosen |= static_cast<unsigned>(bytes >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  }
  return chosen;
}

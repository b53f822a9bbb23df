// A kernel that is right, and the same kernel with one mistake each. The program's argument names the variant; it
// prints, for every order of threads, the bits of the results or the error.
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "../../csrc/kernels/cuda/portable.h"

namespace {

enum class Bug {
  none,
  no_barrier_after_write,
  no_barrier_before_overwrite,
  no_barrier_between_warps,
  no_syncwarp,
  barrier_after_exit,
  barrier_in_each_branch,
  caller_outside_mask,
  masked_lane_exited,
  masked_lane_elsewhere,
  masked_lane_absent,
  source_outside_mask,
  index_past_end,
  uninitialized_read,
  blocks_share_output,
};

constexpr unsigned kFull = 0xffffffffu;
constexpr int kSide = 8, kTile = kSide * kSide, kTiles = 4, kBlocks = 3;
constexpr int kSharedFloats = kTile + 4;  // a tile, the sum of each warp, and two zeros to add them in fours

template <Bug kBug>
__device__ float warp_sum(float value, int lane) {
  if constexpr (kBug == Bug::caller_outside_mask) return __shfl_xor_sync(0xffffu, value, 8);
  if constexpr (kBug == Bug::masked_lane_elsewhere) {
    if (lane >= 16) return 0;
  }
  if constexpr (kBug == Bug::source_outside_mask) {
    return lane < 16 ? __shfl_xor_sync(0xffffu, value, 16) : __shfl_xor_sync(0xffff0000u, value, 8);
  }
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kFull, value, distance);
  return value;
}

// The tiles of the block, each transposed; and the sum of all its entries. 64 threads, one an entry of a tile.
template <Bug kBug>
__global__ void __launch_bounds__(kTile)
    transpose_and_sum(const float* __restrict__ in, float* __restrict__ out, float* __restrict__ sums) {
  PPCMI_DYNAMIC_SHARED(float, tile);
  float* const partial = tile + kTile;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int block = kBug == Bug::blocks_share_output ? 0 : static_cast<int>(blockIdx.x);
  const int row = thread / kSide, column = thread % kSide;
  const float* const from = in + static_cast<int>(blockIdx.x) * kTiles * kTile;
  float* const to = out + block * kTiles * kTile;
  if (kBug == Bug::barrier_after_exit && thread >= 32) return;
  if (kBug == Bug::masked_lane_exited && thread == 5) return;

  float total = 0;
  for (int t = 0; t < kTiles; ++t) {
    tile[thread] = __ldg(from + t * kTile + thread);
    total += tile[thread];
    if constexpr (kBug == Bug::barrier_in_each_branch) {
      if (thread < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    } else if constexpr (kBug != Bug::no_barrier_after_write && kBug != Bug::masked_lane_exited) {
      __syncthreads();
    }
    const int last = kBug == Bug::index_past_end ? kSharedFloats : kTile - 1;
    to[t * kTile + thread] = tile[thread == kTile - 1 ? last : column * kSide + row];
    if constexpr (kBug != Bug::no_barrier_before_overwrite && kBug != Bug::masked_lane_exited) __syncthreads();
  }

  total = warp_sum<kBug>(total, lane);
  if (lane == 0) partial[thread / 32] = total;
  if (kBug != Bug::uninitialized_read && thread >= 62) partial[thread - 60] = 0;
  if constexpr (kBug != Bug::no_barrier_between_warps) __syncthreads();
  if (thread == 33) sums[block] = partial[0] + partial[1] + partial[2] + partial[3];
}

// Rotates each warp's values by one lane through shared memory, four times; warps do not meet.
template <Bug kBug>
__global__ void rotate_in_warp(const float* in, float* out, float*) {
  PPCMI_DYNAMIC_SHARED(float, values);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int at = static_cast<int>(blockIdx.x * blockDim.x) + thread;
  float value = in[at];
  for (int step = 0; step < 4; ++step) {
    values[thread] = value;
    __syncwarp();
    value = values[thread - lane + (lane + 1) % 32];
    if constexpr (kBug != Bug::no_syncwarp) __syncwarp();
  }
  out[at] = value;
}

// 48 threads: the second warp has 16 lanes.
template <Bug kBug>
__global__ void sum_in_short_warp(const float* in, float* out, float*) {
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned mask = thread < 32 || kBug == Bug::masked_lane_absent ? kFull : 0xffffu;
  float value = in[thread];
  for (int distance = 8; distance > 0; distance /= 2) value += __shfl_xor_sync(mask, value, distance);
  out[thread] = value;
}

// What each lane gets of the lane before it, of the one two on, of the voters below its half, and of any vote.
__global__ void collectives(const float* in, float* out, float*) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  float* const mine = out + 4 * thread;
  mine[0] = __shfl_sync(kFull, in[thread], lane + 31, 32);
  mine[1] = __shfl_down_sync(kFull, in[thread], 2);
  mine[2] = static_cast<float>(__ballot_sync(kFull, lane < 16 && lane % 3 == 0));
  mine[3] = static_cast<float>(__any_sync(kFull, thread == 40));
}

using Kernel = void (*)(const float*, float*, float*);

struct Case {
  const char* name;
  Kernel kernel;
  unsigned threads;
};

#define TRANSPOSE_AND_SUM(bug) {#bug, transpose_and_sum<Bug::bug>, kTile}
const Case kCases[] = {
    TRANSPOSE_AND_SUM(none),
    TRANSPOSE_AND_SUM(no_barrier_after_write),
    TRANSPOSE_AND_SUM(no_barrier_before_overwrite),
    TRANSPOSE_AND_SUM(no_barrier_between_warps),
    TRANSPOSE_AND_SUM(barrier_after_exit),
    TRANSPOSE_AND_SUM(barrier_in_each_branch),
    TRANSPOSE_AND_SUM(caller_outside_mask),
    TRANSPOSE_AND_SUM(masked_lane_exited),
    TRANSPOSE_AND_SUM(masked_lane_elsewhere),
    TRANSPOSE_AND_SUM(source_outside_mask),
    TRANSPOSE_AND_SUM(index_past_end),
    TRANSPOSE_AND_SUM(uninitialized_read),
    TRANSPOSE_AND_SUM(blocks_share_output),
    {"rotation", rotate_in_warp<Bug::none>, kTile},
    {"no_syncwarp", rotate_in_warp<Bug::no_syncwarp>, kTile},
    {"collectives", collectives, kTile},
    {"short_warp", sum_in_short_warp<Bug::none>, 48},
    {"masked_lane_absent", sum_in_short_warp<Bug::masked_lane_absent>, 48},
};

void run(const Case& chosen) {
  constexpr int kCount = kBlocks * kTiles * kTile;
  std::vector<float> in(kCount), out(kCount, 0), sums(kBlocks, 0);
  for (int i = 0; i < kCount; ++i) in[i] = static_cast<float>(i + 1);
  try {
    PPCMI_LAUNCH(chosen.kernel, dim3(kBlocks), dim3(chosen.threads), kSharedFloats * sizeof(float), nullptr, in.data(),
                 out.data(), sums.data());
  } catch (const std::exception& error) {
    std::printf("error %s\n", error.what());
    return;
  }
  std::printf("bits");
  for (const float value : out) std::printf(" %08x", __float_as_uint(value));
  for (const float value : sums) std::printf(" %08x", __float_as_uint(value));
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  using ppcmi::shim::Order;
  for (const Case& chosen : kCases) {
    if (argc != 2 || std::string(argv[1]) != chosen.name) continue;
    ppcmi::shim::set_order(Order::forward);
    run(chosen);
    ppcmi::shim::set_order(Order::reverse);
    run(chosen);
    for (unsigned seed = 0; seed < 3; ++seed) {
      ppcmi::shim::set_order(Order::shuffled, seed);
      run(chosen);
    }
    return 0;
  }
  std::fprintf(stderr, "expected the name of one variant\n");
  return 2;
}

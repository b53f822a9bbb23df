// What every operator's block does between its source and its result, and how many positions it takes.
#pragma once

#include "images.cuh"
#include "product.cuh"

namespace ppcmi::cuda {

// The dynamic shared memory of a block.
template <int kWide>
struct Shared {
  float *rows, *gains, *extra;
  std::uint8_t* table;

  __device__ __forceinline__ Shared(float* memory, const Plan& plan) {
    constexpr int kPitch = pitch_of<kWide>();
    rows = memory;
    gains = rows + plan.dim * kPitch;
    extra = gains + kPitch;
    table = reinterpret_cast<std::uint8_t*>(extra + extra_rows(plan) * kPitch);
  }

  // Sums of squares, then a part of a dense product.
  __host__ __device__ __forceinline__ static int extra_rows(const Plan& plan) {
    const int part = plan.matrix ? (plan.outputs < kChunk ? plan.outputs : kChunk) : 0;
    return part > kWarps ? part : kWarps;
  }

  static std::size_t bytes(const Plan& plan) {
    const auto floats = static_cast<std::size_t>(plan.dim + 1 + extra_rows(plan)) * pitch_of<kWide>();
    return floats * sizeof(float) + sizeof(Cells::table);
  }
};

// Gains and mixing of the rows in shared memory, then store(from, end, rows) for results [from, end): all of them, or
// for a dense product as many as a block computes at a time.
template <int kWide, typename Store>
__device__ __forceinline__ void mix_and_store(const Plan& plan, const float* matrix, float scale,
                                              const Shared<kWide>& shared, const Store& store) {
  find_gains<kWide>(plan, scale, shared.rows, shared.extra, shared.gains);
  if (!plan.matrix) {
    mix_rows<kWide>(plan, shared.rows);
    return store(0, plan.outputs, shared.rows);
  }
  if constexpr (kWide <= kWidest) {
    for (int from = 0; from < plan.outputs; from += kChunk) {
      const int end = from + kChunk < plan.outputs ? from + kChunk : plan.outputs;
      __syncthreads();
      product<kWide>(plan, matrix, from, shared.rows, shared.extra);
      __syncthreads();
      store(from, end, shared.extra);
    }
  }
}

constexpr std::size_t kUsualShared = 100 << 10;  // two blocks on a multiprocessor of 227 KiB
constexpr std::size_t kMostShared = 163 << 10;   // sm_80

// Calls run(std::integral_constant<int, kWide>) with the most positions a lane that leave room for a second block and
// do not exceed the grid.
template <typename Run>
void with_width(const Plan& plan, std::int64_t area, const Run& run) {
  if (!plan.matrix && area > 64 && Shared<4>::bytes(plan) <= kUsualShared) return run(std::integral_constant<int, 4>{});
  if (area > 32 && Shared<2>::bytes(plan) <= kUsualShared) return run(std::integral_constant<int, 2>{});
  if (Shared<1>::bytes(plan) <= kMostShared) return run(std::integral_constant<int, 1>{});
  throw std::runtime_error("dim: expected channels that fit a block's shared memory, got " + std::to_string(plan.dim) +
                           "; use less folding or tensors on the cpu");
}

inline dim3 blocks_for(std::int64_t n, std::int64_t area, int wide) {
  const std::int64_t blocks = n * ((area + 32 * wide - 1) / (32 * wide));
  if (blocks > 0x7fffffff) throw std::runtime_error("x: expected at most 2^31 - 1 tiles, got more; split the batch");
  return dim3(static_cast<unsigned>(blocks));
}

// Calls work with a null pointer of the image's type.
template <typename Work>
void with_type(Type type, const Work& work) {
  switch (type) {
    case Type::f32:
      return work(static_cast<float*>(nullptr));
    case Type::f16:
      return work(static_cast<__half*>(nullptr));
    case Type::bf16:
      return work(static_cast<__nv_bfloat16*>(nullptr));
  }
}

}  // namespace ppcmi::cuda

// The dense mixing of a tile in shared memory, on tensor cores. TF32 alone would round every weight to 10 bits of
// mantissa and move codes; each product is therefore the sum of two or three of halves ("3xTF32"), about as
// exact as float32. The halves of an infinity are infinity and NaN: a position that holds one becomes NaN.
#pragma once

#include "mixing.cuh"
#include "mma.cuh"

namespace ppcmi::cuda {

constexpr int kChunk = 64;  // outputs that a block computes at a time

// A warp's share of a chunk: 32 outputs x 8 * kWide positions, so that the eight warps share it evenly and a fragment
// read from memory serves two or kWide products.
constexpr int kOutTiles = 2;

// The most positions a lane for which the sums leave registers for a second block.
constexpr int kWidest = 2;

// A single chain of sums over a large dim would round worse than torch does.
constexpr int kTerms = 128;

// Element (out, in) of the matrix, 0 beyond it.
struct Weights {
  const float* data;
  std::int64_t next_out, next_in;
  int outputs, dim;

  __device__ __forceinline__ float at(int out, int in) const {
    return out < outputs && in < dim ? __ldg(data + out * next_out + in * next_in) : 0.0f;
  }

  __device__ __forceinline__ FragmentA fragment(int out, int in) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = out + lane / 4, column = in + lane % 4;
    return {{at(row, column), at(row + 8, column), at(row, column + 4), at(row + 8, column + 4)}};
  }
};

// Rows from `dim` on were never written: they count as 0.
template <int kWide>
__device__ __forceinline__ FragmentB row_fragment(const float* rows, int dim, int in, int position) {
  constexpr int kPitch = pitch_of<kWide>();
  const int lane = static_cast<int>(threadIdx.x) % 32, row = in + lane % 4, column = position + lane / 4;
  return {{row < dim ? rows[row * kPitch + column] : 0.0f, row + 4 < dim ? rows[(row + 4) * kPitch + column] : 0.0f}};
}

// results[o - from] = row o of the matrix times the rows, for outputs [from, from + kChunk) that the plan has.
template <int kWide>
__device__ __forceinline__ void product(const Plan& plan, const float* matrix, int from, const float* rows,
                                        float* results) {
  constexpr int kPitch = pitch_of<kWide>();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int out = from + warp % 2 * 16 * kOutTiles, position = warp / 2 * 8 * kWide;
  if (out >= plan.outputs) return;
  const Weights weights{matrix, plan.transposed ? 1 : plan.dim, plan.transposed ? plan.outputs : 1, plan.outputs,
                        plan.dim};
  // The small terms on their own: added one by one to the large, each would cost a rounding of the whole sum.
  FragmentC totals[kOutTiles][kWide] = {}, small[kOutTiles][kWide] = {};
  for (int first = 0; first < plan.dim; first += kTerms) {
    FragmentC sums[kOutTiles][kWide] = {};
    const int last = first + kTerms < plan.dim ? first + kTerms : plan.dim;
    for (int in = first; in < last; in += 8) {
      const Split<FragmentA> left[kOutTiles] = {Split<FragmentA>(weights.fragment(out, in)),
                                                Split<FragmentA>(weights.fragment(out + 16, in))};
#pragma unroll
      for (int n = 0; n < kWide; ++n) {
        const Split<FragmentB> right(row_fragment<kWide>(rows, plan.dim, in, position + 8 * n));
#pragma unroll
        for (int m = 0; m < kOutTiles; ++m) {
          if (!plan.short_source) multiply_add(small[m][n], left[m].high, right.low);
          multiply_add(small[m][n], left[m].low, right.high);
          multiply_add(sums[m][n], left[m].high, right.high);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kOutTiles; ++m)
#pragma unroll
      for (int n = 0; n < kWide; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) totals[m][n].at[i] += sums[m][n].at[i];
  }
#pragma unroll
  for (int m = 0; m < kOutTiles; ++m)
#pragma unroll
    for (int n = 0; n < kWide; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = out + 16 * m + lane / 4 + i / 2 * 8;
        if (row < plan.outputs)
          results[(row - from) * kPitch + position + 8 * n + lane % 4 * 2 + i % 2] =
              totals[m][n].at[i] + small[m][n].at[i];
      }
}

}  // namespace ppcmi::cuda

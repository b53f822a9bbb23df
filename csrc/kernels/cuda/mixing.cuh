// Mixing of a tile in shared memory, shared by the operators. The structured one is the CPU's with a warp in the place
// of a vector: each thread runs radix-16 butterflies on its own positions in registers, so no shuffle is needed, and R
// rounds of up to 256 channels are R + 1 passes over shared memory. Normalization, scale and offset wait for the
// result.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "../steps.h"
#include "tile.cuh"

namespace ppcmi::cuda {

constexpr int kMaxSteps = 16;
constexpr int kMaxOdd = 63;
constexpr int kRadixBits = 4;

// What a kernel needs to know of the key material; small enough to be an argument.
struct Plan {
  int dim, outputs, odd, step_count;
  Step steps[kMaxSteps];
  const float* matrix;       // dense: [outputs, dim], or its transpose
  const std::int64_t* perm;  // structured: result i is row perm[i]
  const float* last_signs;   // structured, inverse: multiply the result
  const float* offset;       // or null
  float scale, inverse_dim;
  bool transposed, normalize, inverse;
  bool short_source;  // dense: what the product reads has no more mantissa than TF32
};

inline Plan make_plan(const Material& m, bool inverse, bool normalize) {
  Plan plan{};
  plan.dim = plan.outputs = static_cast<int>(m.dim);
  plan.odd = static_cast<int>(m.odd);
  plan.offset = m.offset;
  plan.scale = 1.0f;
  plan.inverse_dim = 1.0f / static_cast<float>(m.dim);
  plan.normalize = normalize;
  plan.inverse = inverse;
  if (m.rounds == 0) {
    plan.matrix = m.mix;
    plan.transposed = inverse;
    return plan;
  }
  std::vector<Step> steps;
  plan_steps(m, inverse, kRadixBits, steps);
  if (steps.size() > kMaxSteps)
    throw std::runtime_error("material: expected a mixing of at most " + std::to_string(kMaxSteps) + " steps, got " +
                             std::to_string(steps.size()) + "; use fewer rounds");
  plan.step_count = static_cast<int>(steps.size());
  for (std::size_t i = 0; i < steps.size(); ++i) plan.steps[i] = steps[i];
  plan.perm = m.perm;
  plan.last_signs = inverse ? m.mix : nullptr;
  plan.scale = std::pow(static_cast<float>(m.dim / m.odd), -0.5f * static_cast<float>(m.rounds));
  return plan;
}

template <int kWide>
__device__ __forceinline__ void scale_by(Floats<kWide>& value, float factor) {
#pragma unroll
  for (int i = 0; i < kWide; ++i) value.at[i] *= factor;
}

template <int kBits, int kWide>
__device__ __forceinline__ void sums_and_differences(Floats<kWide> (&v)[1 << kBits], int span) {
#pragma unroll
  for (int k = 0; k < 1 << kBits; ++k)
    if (!(k & span))
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        const float a = v[k].at[i], b = v[k | span].at[i];
        v[k].at[i] = a + b;
        v[k | span].at[i] = a - b;
      }
}

// Walsh-Hadamard stages within 2^kBits rows held in registers, after the signs (null: none).
template <int kBits, int kWide>
__device__ __forceinline__ void turn(Floats<kWide> (&v)[1 << kBits], const float* signs, int stride) {
  if (signs) {
#pragma unroll
    for (int k = 0; k < 1 << kBits; ++k) scale_by(v[k], __ldg(signs + k * stride));
  }
#pragma unroll
  for (int span = 1; span < 1 << kBits; span *= 2) sums_and_differences<kBits, kWide>(v, span);
}

template <int kBits, int kWide>
__device__ __forceinline__ void butterflies(const Step& step, int dim, float* rows) {
  constexpr int kPitch = pitch_of<kWide>();
  const int stride = 1 << step.low;
  for (int group = static_cast<int>(threadIdx.x) / 32; group < dim >> kBits; group += kWarps) {
    const int first = ((group >> step.low) << (step.low + kBits)) + (group & (stride - 1));
    Floats<kWide> v[1 << kBits];
#pragma unroll
    for (int k = 0; k < 1 << kBits; ++k) v[k] = load_row<kWide>(rows + (first + k * stride) * kPitch);
    for (int t = 0; t < step.turns; ++t) turn<kBits>(v, step.signs[t] ? step.signs[t] + first : nullptr, stride);
#pragma unroll
    for (int k = 0; k < 1 << kBits; ++k) store_row(rows + (first + k * stride) * kPitch, v[k]);
  }
}

// Rows seen as [odd][power]: mixes the `odd` runs, after the signs.
template <int kWide>
__device__ __forceinline__ void mix_runs(const Step& step, const Plan& plan, float* rows) {
  constexpr int kPitch = pitch_of<kWide>();
  const int power = plan.dim / plan.odd;
  for (int p = static_cast<int>(threadIdx.x) / 32; p < power; p += kWarps) {
    Floats<kWide> line[kMaxOdd];
    for (int a = 0; a < plan.odd; ++a) {
      line[a] = load_row<kWide>(rows + (a * power + p) * kPitch);
      if (step.signs[0]) scale_by(line[a], __ldg(step.signs[0] + a * power + p));
    }
    for (int a = 0; a < plan.odd; ++a) {
      Floats<kWide> sum{};
      for (int c = 0; c < plan.odd; ++c) {
        const float weight = __ldg(step.factor + (step.transposed ? c * plan.odd + a : a * plan.odd + c));
#pragma unroll
        for (int i = 0; i < kWide; ++i) sum.at[i] += weight * line[c].at[i];
      }
      store_row(rows + (a * power + p) * kPitch, sum);
    }
  }
}

// All steps of a structured plan. Begins and ends with a barrier.
template <int kWide>
__device__ __forceinline__ void mix_rows(const Plan& plan, float* rows) {
  for (int s = 0; s < plan.step_count; ++s) {
    __syncthreads();
    const Step& step = plan.steps[s];
    if (step.factor) {
      mix_runs<kWide>(step, plan, rows);
    } else if (step.bits == 4) {
      butterflies<4, kWide>(step, plan.dim, rows);
    } else if (step.bits == 3) {
      butterflies<3, kWide>(step, plan.dim, rows);
    } else if (step.bits == 2) {
      butterflies<2, kWide>(step, plan.dim, rows);
    } else if (step.bits == 1) {
      butterflies<1, kWide>(step, plan.dim, rows);
    } else {
      butterflies<0, kWide>(step, plan.dim, rows);
    }
  }
  __syncthreads();
}

// scale / sqrt(mean + 1e-12), without the branches that a division and a root bring: within an ulp or two of them.
__device__ __forceinline__ float normalizing_gain(float scale, float mean) {
  const float square = mean + 1e-12f, root = rsqrtf(square);
  const float refined = fmaf(0.5f * root, fmaf(-square * root, root, 1.0f), root);
  return scale * (root > 0.0f ? refined : root);  // of an infinity the root is 0, and refined not a number
}

// gains[t] = what the result at position t is multiplied by: the scale, over the root mean square of its source vector.
// `sums` is [kWarps][pitch]. The rows must be there; begins and ends with a barrier where it normalizes.
template <int kWide>
__device__ __forceinline__ void find_gains(const Plan& plan, float scale, const float* rows, float* sums,
                                           float* gains) {
  constexpr int kPitch = pitch_of<kWide>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (!plan.normalize) {
    for (int t = static_cast<int>(threadIdx.x); t < 32 * kWide; t += kThreads) gains[t] = scale;
    return;
  }
  __syncthreads();
  Floats<kWide> sum{};
  for (int d = warp; d < plan.dim; d += kWarps) {
    const Floats<kWide> value = load_row<kWide>(rows + d * kPitch);
#pragma unroll
    for (int i = 0; i < kWide; ++i) sum.at[i] += value.at[i] * value.at[i];
  }
  store_row(sums + warp * kPitch, sum);
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x); t < 32 * kWide; t += kThreads) {
    // In the order that suits the lanes of warp_product.cuh.
    float parts[kWarps / 2];
    for (int w = 0; w < kWarps / 2; ++w) parts[w] = sums[w * kPitch + t] + sums[(w + kWarps / 2) * kPitch + t];
    const float total = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    gains[t] = normalizing_gain(scale, total * plan.inverse_dim);
  }
}

}  // namespace ppcmi::cuda

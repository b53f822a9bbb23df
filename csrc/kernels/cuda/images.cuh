// Sources and results of a tile: images of floats, and packed codes.
#pragma once

#include "../codebooks.h"
#include "mixing.cuh"

namespace ppcmi::cuda {

// Where channel d of an inverse transform's source goes, and where result i of a forward one comes from.
__device__ __forceinline__ int source_row(const Plan& plan, int d) {
  return plan.inverse && plan.perm ? static_cast<int>(__ldg(plan.perm + d)) : d;
}

__device__ __forceinline__ int result_row(const Plan& plan, int i) {
  return !plan.inverse && plan.perm ? static_cast<int>(__ldg(plan.perm + i)) : i;
}

__device__ __forceinline__ float source_offset(const Plan& plan, int d) {
  return plan.inverse && plan.offset ? __ldg(plan.offset + d) : 0.0f;
}

template <typename T>
struct FloatSource {
  View view;

  template <int kWide>
  __device__ __forceinline__ void load(const Plan& plan, const Span& span, float* rows) const {
    constexpr int kPitch = pitch_of<kWide>();
    const T* data = static_cast<const T*>(view.image.data);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (view.vectors) {
      const T* first = data + span.n * view.image.stride_n + span.first + lane * kWide;
      for (int d = static_cast<int>(threadIdx.x) / 32; d < plan.dim; d += kWarps) {
        Floats<kWide> value{};
        if (lane * kWide < span.count) {
          const auto packed = *reinterpret_cast<const Packed<T, kWide>*>(first + d * view.image.stride_c);
#pragma unroll
          for (int i = 0; i < kWide; ++i) value.at[i] = to_float(packed.at[i]) - source_offset(plan, d);
        }
        store_row(rows + source_row(plan, d) * kPitch, value);
      }
      return;
    }
    for_elements(view, span, 0, plan.dim, [&](auto pack, int first, int t, std::int64_t at) {
      const auto packed = *reinterpret_cast<const Packed<T, pack.value>*>(data + at);
#pragma unroll
      for (int i = 0; i < pack.value; ++i) {
        const int d = first + i;
        rows[source_row(plan, d) * kPitch + t] = to_float(packed.at[i]) - source_offset(plan, d);
      }
    });
  }
};

template <typename T>
struct FloatResult {
  View view;

  // Results [from, end) of `rows`, whose first row is result row 0, or with a dense product, result `from`.
  template <int kWide>
  __device__ __forceinline__ void store(const Plan& plan, const Span& span, const float* offset, int from, int end,
                                        const float* rows, const float* gains) const {
    constexpr int kPitch = pitch_of<kWide>();
    T* data = static_cast<T*>(view.image.data);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const auto factor = [&](int i) { return plan.last_signs ? __ldg(plan.last_signs + i) : 1.0f; };
    const auto shift = [&](int i) { return !plan.inverse && offset ? __ldg(offset + i) : 0.0f; };
    const auto row = [&](int i) { return rows + (plan.matrix ? i - from : result_row(plan, i)) * kPitch; };
    if (view.vectors) {
      const Floats<kWide> gain = load_row<kWide>(gains);
      T* first = data + span.n * view.image.stride_n + span.first + lane * kWide;
      for (int i = from + static_cast<int>(threadIdx.x) / 32; i < end; i += kWarps) {
        if (lane * kWide >= span.count) continue;
        const Floats<kWide> value = load_row<kWide>(row(i));
        Packed<T, kWide> packed;
#pragma unroll
        for (int k = 0; k < kWide; ++k) from_float(fmaf(value.at[k], gain.at[k] * factor(i), shift(i)), packed.at[k]);
        *reinterpret_cast<Packed<T, kWide>*>(first + i * view.image.stride_c) = packed;
      }
      return;
    }
    for_elements(view, span, from, end, [&](auto pack, int first, int t, std::int64_t at) {
      Packed<T, pack.value> packed;
#pragma unroll
      for (int k = 0; k < pack.value; ++k) {
        const int i = first + k;
        from_float(fmaf(row(i)[t], gains[t] * factor(i), shift(i)), packed.at[k]);
      }
      *reinterpret_cast<Packed<T, pack.value>*>(data + at) = packed;
    });
  }
};

// The table below 8 bits is copied to shared memory: neighbouring lanes look up different cells.
struct CodeResult {
  View view;
  Cells cells;

  __device__ __forceinline__ unsigned code(const std::uint8_t* table, float value) const {
    // The comparison is false for a NaN, which gets the highest code.
    const float top = value < 255.0f ? value : 255.0f;
    const auto cell = static_cast<unsigned>(top > 0.0f ? top : 0.0f);
    return cells.bits == 8 ? cell : table[cell];
  }

  template <int kWide>
  __device__ __forceinline__ void store(const Plan& plan, const Span& span, int from, int end, const float* rows,
                                        const float* gains, const std::uint8_t* table) const {
    constexpr int kPitch = pitch_of<kWide>();
    auto* data = static_cast<std::uint8_t*>(view.image.data);
    const int lane = static_cast<int>(threadIdx.x) % 32, per_byte = 8 / cells.bits;
    const auto row = [&](int i) { return rows + (plan.matrix ? i - from : result_row(plan, i)) * kPitch; };
    const auto shift = [&](int i) {
      return plan.offset ? fmaf(__ldg(plan.offset + i), cells.inverse_step, 128.0f) : 128.0f;
    };
    if (view.vectors) {
      const Floats<kWide> gain = load_row<kWide>(gains);
      std::uint8_t* first = data + span.n * view.image.stride_n + span.first + lane * kWide;
      for (int j = from / per_byte + static_cast<int>(threadIdx.x) / 32; j < end / per_byte; j += kWarps) {
        if (lane * kWide >= span.count) continue;
        Packed<std::uint8_t, kWide> packed{};
        for (int p = 0; p < per_byte; ++p) {
          const int i = j * per_byte + p;
          const Floats<kWide> value = load_row<kWide>(row(i));
#pragma unroll
          for (int k = 0; k < kWide; ++k)
            packed.at[k] |=
                static_cast<std::uint8_t>(code(table, fmaf(value.at[k], gain.at[k], shift(i))) << (p * cells.bits));
        }
        *reinterpret_cast<Packed<std::uint8_t, kWide>*>(first + j * view.image.stride_c) = packed;
      }
      return;
    }
    for_elements(view, span, from / per_byte, end / per_byte, [&](auto pack, int first, int t, std::int64_t at) {
      Packed<std::uint8_t, pack.value> packed{};
#pragma unroll
      for (int k = 0; k < pack.value; ++k)
        for (int p = 0; p < per_byte; ++p) {
          const int i = (first + k) * per_byte + p;
          packed.at[k] |=
              static_cast<std::uint8_t>(code(table, fmaf(row(i)[t], gains[t], shift(i))) << (p * cells.bits));
        }
      *reinterpret_cast<Packed<std::uint8_t, pack.value>*>(data + at) = packed;
    });
  }
};

struct CodeSource {
  View view;
  Levels levels;

  __device__ __forceinline__ float level(unsigned code) const {
    return levels.bits == 8 ? levels.first + static_cast<float>(code) * levels.step : levels.table[code];
  }

  template <int kWide>
  __device__ __forceinline__ void load(const Plan& plan, const Span& span, float* rows) const {
    constexpr int kPitch = pitch_of<kWide>();
    const auto* data = static_cast<const std::uint8_t*>(view.image.data);
    const int lane = static_cast<int>(threadIdx.x) % 32, per_byte = 8 / levels.bits;
    const unsigned mask = (1u << levels.bits) - 1;
    if (view.vectors) {
      const std::uint8_t* first = data + span.n * view.image.stride_n + span.first + lane * kWide;
      for (int j = static_cast<int>(threadIdx.x) / 32; j < plan.dim / per_byte; j += kWarps) {
        Packed<std::uint8_t, kWide> packed{};
        if (lane * kWide < span.count)
          packed = *reinterpret_cast<const Packed<std::uint8_t, kWide>*>(first + j * view.image.stride_c);
        for (int p = 0; p < per_byte; ++p) {
          const int d = j * per_byte + p;
          Floats<kWide> value;
#pragma unroll
          for (int k = 0; k < kWide; ++k)
            value.at[k] = level(packed.at[k] >> (p * levels.bits) & mask) - source_offset(plan, d);
          store_row(rows + source_row(plan, d) * kPitch, value);
        }
      }
      return;
    }
    for_elements(view, span, 0, plan.dim / per_byte, [&](auto pack, int first, int t, std::int64_t at) {
      const auto packed = *reinterpret_cast<const Packed<std::uint8_t, pack.value>*>(data + at);
#pragma unroll
      for (int k = 0; k < pack.value; ++k)
        for (int p = 0; p < per_byte; ++p) {
          const int d = (first + k) * per_byte + p;
          const unsigned code = static_cast<unsigned>(packed.at[k]) >> (p * levels.bits) & mask;
          rows[source_row(plan, d) * kPitch + t] = level(code) - source_offset(plan, d);
        }
    });
  }
};

}  // namespace ppcmi::cuda

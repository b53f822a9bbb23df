// The lab of klt_quantize on a GPU: the same operator four times, each version with one idea more. All are checked
// against float64 on the host, then timed beside a copy of the float32 tensor. README.md says how to build it.
//
//   1  a thread is a position; its vector lies in local memory
//   2  a block is 32 positions; the vectors lie in shared memory as rows of a channel, a barrier after every stage
//   3  four stages at a time in registers: two rounds over 256 channels are four passes over shared memory
//   4  csrc/kernels/cuda/klt_quantize.cu: up to 64 channels a lane holds its positions' whole vectors in registers,
//      no barrier between stages; beyond, rounds share their stages, and images meet registers, not shared memory
//
// Versions 1 to 3 take float32, NCHW, a power of two of at most 256 channels, two rounds and 8 bits.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "../../csrc/kernels/cuda/ops.h"

namespace {

using ppcmi::Codebook;
using ppcmi::Image;
using ppcmi::Material;
using ppcmi::Type;

constexpr int kRounds = 2, kMaxDim = 256, kThreads = 256;

struct Problem {
  int n, dim, area;
  const float* x;            // [n, dim, area]
  const float* signs;        // [kRounds, dim]
  const std::int64_t* perm;  // [dim]
  std::uint8_t* codes;       // [n, dim, area]
  float codes_per_unit;
};

__device__ std::uint8_t code_of(float value, float codes_per_unit) {
  const float code = floorf(value * codes_per_unit + 128.0f);
  return static_cast<std::uint8_t>(code < 0.0f ? 0.0f : code > 255.0f ? 255.0f : code);
}

__device__ float gain_of(const Problem& p, float squares) {
  return rsqrtf(squares / static_cast<float>(p.dim) + 1e-12f) / static_cast<float>(p.dim);
}

__global__ void version1(const Problem p) {
  const std::int64_t position = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (position >= static_cast<std::int64_t>(p.n) * p.area) return;
  const std::int64_t start = position / p.area * p.dim * p.area + position % p.area;
  float v[kMaxDim], squares = 0.0f;
  for (int d = 0; d < p.dim; ++d) {
    v[d] = p.x[start + static_cast<std::int64_t>(d) * p.area];
    squares += v[d] * v[d];
  }
  for (int round = 0; round < kRounds; ++round) {
    for (int d = 0; d < p.dim; ++d) v[d] *= p.signs[round * p.dim + d];
    for (int span = 1; span < p.dim; span *= 2)
      for (int d = 0; d < p.dim; ++d)
        if (!(d & span)) {
          const float a = v[d], b = v[d | span];
          v[d] = a + b;
          v[d | span] = a - b;
        }
  }
  const float gain = gain_of(p, squares);
  for (int i = 0; i < p.dim; ++i)
    p.codes[start + static_cast<std::int64_t>(i) * p.area] = code_of(v[p.perm[i]] * gain, p.codes_per_unit);
}

// Where a block's 32 positions are, and which of its warps and lanes a thread is.
struct Tile {
  std::int64_t start;
  int lane, warp;
  bool inside;

  __device__ explicit Tile(const Problem& p) {
    const int tiles = (p.area + 31) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    warp = static_cast<int>(threadIdx.x) / 32;
    const int position = static_cast<int>(blockIdx.x) % tiles * 32 + lane;
    inside = position < p.area;
    start = static_cast<std::int64_t>(blockIdx.x / static_cast<unsigned>(tiles)) * p.dim * p.area + position;
  }
};

constexpr int kWarps = kThreads / 32;

// Rows to shared memory, and each position's gain; `rows` is [dim][32], after it [kWarps + 1][32].
__device__ void load(const Problem& p, const Tile& tile, float* rows) {
  float *sums = rows + p.dim * 32, *gains = sums + kWarps * 32, squares = 0.0f;
  for (int d = tile.warp; d < p.dim; d += kWarps) {
    const float value = tile.inside ? p.x[tile.start + static_cast<std::int64_t>(d) * p.area] : 0.0f;
    rows[d * 32 + tile.lane] = value;
    squares += value * value;
  }
  sums[tile.warp * 32 + tile.lane] = squares;
  __syncthreads();
  if (tile.warp == 0) {
    float total = 0.0f;
    for (int w = 0; w < kWarps; ++w) total += sums[w * 32 + tile.lane];
    gains[tile.lane] = gain_of(p, total);
  }
  __syncthreads();
}

__device__ void store(const Problem& p, const Tile& tile, const float* rows) {
  const float* gains = rows + (p.dim + kWarps) * 32;
  for (int i = tile.warp; i < p.dim; i += kWarps) {
    const float value = rows[static_cast<int>(p.perm[i]) * 32 + tile.lane] * gains[tile.lane];
    if (tile.inside) p.codes[tile.start + static_cast<std::int64_t>(i) * p.area] = code_of(value, p.codes_per_unit);
  }
}

__global__ void version2(const Problem p) {
  PPCMI_DYNAMIC_SHARED(float, rows);
  const Tile tile(p);
  load(p, tile, rows);
  for (int round = 0; round < kRounds; ++round) {
    for (int d = tile.warp; d < p.dim; d += kWarps) rows[d * 32 + tile.lane] *= p.signs[round * p.dim + d];
    __syncthreads();
    for (int span = 1; span < p.dim; span *= 2) {
      for (int pair = tile.warp; pair < p.dim / 2; pair += kWarps) {
        const int d = pair / span * 2 * span + pair % span;
        const float a = rows[d * 32 + tile.lane], b = rows[(d + span) * 32 + tile.lane];
        rows[d * 32 + tile.lane] = a + b;
        rows[(d + span) * 32 + tile.lane] = a - b;
      }
      __syncthreads();
    }
  }
  store(p, tile, rows);
}

// Stages low .. low + kBits - 1 in registers, after the signs (null: none).
template <int kBits>
__device__ void stages(const Problem& p, const Tile& tile, const float* signs, int low, float* rows) {
  for (int group = tile.warp; group < p.dim >> kBits; group += kWarps) {
    const int first = ((group >> low) << (low + kBits)) + (group & ((1 << low) - 1));
    float v[1 << kBits];
#pragma unroll
    for (int k = 0; k < 1 << kBits; ++k) {
      const int d = first + (k << low);
      v[k] = rows[d * 32 + tile.lane] * (signs ? signs[d] : 1.0f);
    }
#pragma unroll
    for (int span = 1; span < 1 << kBits; span *= 2)
#pragma unroll
      for (int k = 0; k < 1 << kBits; ++k)
        if (!(k & span)) {
          const float a = v[k], b = v[k | span];
          v[k] = a + b;
          v[k | span] = a - b;
        }
#pragma unroll
    for (int k = 0; k < 1 << kBits; ++k) rows[(first + (k << low)) * 32 + tile.lane] = v[k];
  }
  __syncthreads();
}

__global__ void version3(const Problem p) {
  PPCMI_DYNAMIC_SHARED(float, rows);
  const Tile tile(p);
  load(p, tile, rows);
  for (int round = 0; round < kRounds; ++round) {
    for (int low = 0; 1 << low < p.dim; low += 4) {
      const float* signs = low == 0 ? p.signs + round * p.dim : nullptr;
      const int left = p.dim >> low;
      if (left >= 16) {
        stages<4>(p, tile, signs, low, rows);
      } else if (left == 8) {
        stages<3>(p, tile, signs, low, rows);
      } else if (left == 4) {
        stages<2>(p, tile, signs, low, rows);
      } else {
        stages<1>(p, tile, signs, low, rows);
      }
    }
  }
  store(p, tile, rows);
}

void run(int version, const Problem& p, const Codebook& thresholds, cudaStream_t stream) {
  const dim3 tiles(static_cast<unsigned>(p.n * ((p.area + 31) / 32)));
  const std::size_t shared = static_cast<std::size_t>(p.dim + kWarps + 1) * 32 * sizeof(float);
  if (version == 1) {
    const int positions = p.n * p.area;
    const dim3 blocks(static_cast<unsigned>((positions + kThreads - 1) / kThreads));
    PPCMI_LAUNCH(version1, blocks, dim3(kThreads), 0, stream, p);
  } else if (version == 2) {
    PPCMI_LAUNCH(version2, tiles, dim3(kThreads), shared, stream, p);
  } else if (version == 3) {
    PPCMI_LAUNCH(version3, tiles, dim3(kThreads), shared, stream, p);
  } else {
    const std::int64_t area = p.area, dim = p.dim;
    const Image x{const_cast<float*>(p.x), p.n, dim, 1, area, dim * area, area, area, 1, Type::f32};
    const Image codes{p.codes, p.n, dim, 1, area, dim * area, area, area, 1, Type::f32};
    static float one = 1.0f;  // an odd part of 1: its factors are never read
    const Material material{dim, kRounds, 1, p.signs, &one, p.perm, nullptr};
    ppcmi::cuda::klt_quantize(x, codes, material, 1, true, thresholds, stream);
  }
}

// In float64; false where a value lies so near a threshold that either code is right.
bool code_is_right(const Problem& p, const std::vector<double>& mixed, int i, std::uint8_t code) {
  const double value = mixed[static_cast<std::size_t>(p.perm[i])] * p.codes_per_unit + 128.0;
  const double best = std::min(255.0, std::max(0.0, std::floor(value)));
  return best == code || (std::abs(best - code) == 1 && std::abs(value - std::round(value)) < 1e-3);
}

long long wrong_codes(const Problem& p) {
  long long wrong = 0;
  for (int n = 0; n < p.n; ++n)
    for (int at = 0; at < p.area; at += 1 + p.area / 61) {
      const std::int64_t start = static_cast<std::int64_t>(n) * p.dim * p.area + at;
      std::vector<double> v(static_cast<std::size_t>(p.dim));
      double squares = 0.0;
      for (int d = 0; d < p.dim; ++d) {
        v[static_cast<std::size_t>(d)] = p.x[start + static_cast<std::int64_t>(d) * p.area];
        squares += v[static_cast<std::size_t>(d)] * v[static_cast<std::size_t>(d)];
      }
      for (int round = 0; round < kRounds; ++round) {
        for (int d = 0; d < p.dim; ++d) v[static_cast<std::size_t>(d)] *= p.signs[round * p.dim + d];
        for (int span = 1; span < p.dim; span *= 2)
          for (int d = 0; d < p.dim; ++d)
            if (!(d & span)) {
              const double a = v[static_cast<std::size_t>(d)], b = v[static_cast<std::size_t>(d | span)];
              v[static_cast<std::size_t>(d)] = a + b;
              v[static_cast<std::size_t>(d | span)] = a - b;
            }
      }
      const double gain = 1.0 / std::sqrt(squares / p.dim + 1e-12) / p.dim;
      for (double& value : v) value *= gain;
      for (int i = 0; i < p.dim; ++i)
        wrong += !code_is_right(p, v, i, p.codes[start + static_cast<std::int64_t>(i) * p.area]);
    }
  return wrong;
}

#ifdef PPCMI_HOST_SHIM

// On the host the device's memory is the host's.
template <typename T>
T* on_device(const std::vector<T>& values) {
  T* data = static_cast<T*>(std::malloc(values.size() * sizeof(T)));
  return std::copy(values.begin(), values.end(), data) - values.size();
}
void clear(std::uint8_t* codes, std::size_t count) { std::memset(codes, 0, count); }
void fetch(std::uint8_t* to, const std::uint8_t* codes, std::size_t count) { std::memcpy(to, codes, count); }
void time_all(const Problem&, const Codebook&) { std::printf("times: not measured without a GPU\n"); }

#else

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(2);
}

template <typename T>
T* on_device(const std::vector<T>& values) {
  T* data = nullptr;
  check(cudaMalloc(&data, values.size() * sizeof(T)));
  check(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}
void clear(std::uint8_t* codes, std::size_t count) { check(cudaMemset(codes, 0, count)); }
void fetch(std::uint8_t* to, const std::uint8_t* codes, std::size_t count) {
  check(cudaMemcpy(to, codes, count, cudaMemcpyDeviceToHost));
}

template <typename Work>
double milliseconds(const Work& work) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  std::vector<float> times(21);
  work();
  for (float& time : times) {
    check(cudaEventRecord(start));
    work();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    check(cudaEventElapsedTime(&time, start, end));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void time_all(const Problem& p, const Codebook& thresholds) {
  const double elements = static_cast<double>(p.n) * p.dim * p.area;
  float* target = on_device(std::vector<float>(static_cast<std::size_t>(elements)));
  const auto copy = [&] {
    check(cudaMemcpyAsync(target, p.x, static_cast<std::size_t>(elements) * 4, cudaMemcpyDeviceToDevice));
  };
  const double copied = milliseconds(copy), bandwidth = elements * 8 / copied * 1e-6;
  std::printf("copy: %.3f ms, %.0f GB/s\n", copied, bandwidth);
  for (int version = 1; version <= 4; ++version) {
    const double time = milliseconds([&] { run(version, p, thresholds, nullptr); });
    const double rate = elements * 5 / time * 1e-6;
    std::printf("version %d: %.3f ms, %.0f GB/s, %.0f %% of the copy\n", version, time, rate, 100 * rate / bandwidth);
  }
}

#endif

}  // namespace

int main(int argc, char** argv) {
  const int dim = argc > 1 ? std::atoi(argv[1]) : 64, n = argc > 2 ? std::atoi(argv[2]) : 2;
  const int area = argc > 3 ? std::atoi(argv[3]) : 100;
  if (argc > 4 || dim < 2 || dim > kMaxDim || (dim & (dim - 1)) || n < 1 || area < 1) {
    std::fprintf(stderr, "expected [channels: a power of two, 2 to %d] [samples] [positions]\n", kMaxDim);
    return 2;
  }
  std::mt19937 random(0);
  std::normal_distribution<float> normal(0.3f, 2.0f);
  const std::size_t elements =
      static_cast<std::size_t>(n) * static_cast<std::size_t>(dim) * static_cast<std::size_t>(area);
  std::vector<float> x(elements), signs(static_cast<std::size_t>(kRounds * dim));
  std::vector<std::int64_t> perm(static_cast<std::size_t>(dim));
  std::vector<std::uint8_t> codes(elements);
  for (float& value : x) value = normal(random);
  for (float& sign : signs) sign = random() & 1 ? 1.0f : -1.0f;
  std::iota(perm.begin(), perm.end(), std::int64_t{0});
  std::shuffle(perm.begin(), perm.end(), random);
  const float step = 0.03f;
  std::vector<float> thresholds(255);
  for (int i = 0; i < 255; ++i) thresholds[static_cast<std::size_t>(i)] = step * static_cast<float>(i - 127);
  const Problem host{n, dim, area, x.data(), signs.data(), perm.data(), codes.data(), 1.0f / step};
  const Problem p{n, dim, area, on_device(x), on_device(signs), on_device(perm), on_device(codes), 1.0f / step};
  const Codebook codebook{8, thresholds.data()};
  long long wrong = 0;
  for (int version = 1; version <= 4; ++version) {
    clear(p.codes, elements);
    run(version, p, codebook, nullptr);
    fetch(host.codes, p.codes, elements);
    const long long here = wrong_codes(host);
    std::printf("version %d: %lld wrong codes\n", version, here);
    wrong += here;
  }
  if (wrong) return 1;
  time_all(p, codebook);
  return 0;
}

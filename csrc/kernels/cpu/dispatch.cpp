#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>

#include "kernels.h"

namespace ppcmi {

namespace {

constexpr Kernels kPortable = {"portable",
                               3,
                               portable::klt,
                               portable::klt_quantize,
                               portable::klt_dequantize,
                               portable::switch_dequantize,
                               portable::peak,
                               portable::peak_operations};
#ifdef PPCMI_X86
constexpr Kernels kAvx2 = {"avx2",
                           3,
                           avx2::klt,
                           avx2::klt_quantize,
                           avx2::klt_dequantize,
                           avx2::switch_dequantize,
                           avx2::peak,
                           avx2::peak_operations};
constexpr Kernels kAvx512 = {"avx512",
                             4,
                             avx512::klt,
                             avx512::klt_quantize,
                             avx512::klt_dequantize,
                             avx512::switch_dequantize,
                             avx512::peak,
                             avx512::peak_operations};
#endif

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#ifdef PPCMI_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi");
  if (avx2 && avx512) found.push_back(&kAvx512);
  if (avx2) found.push_back(&kAvx2);
#endif
  found.push_back(&kPortable);
  return found;
}

std::atomic<const Kernels*>& in_use() {
  static std::atomic<const Kernels*> kernels{available().front()};
  return kernels;
}

// A thread's scratch memory, kept between calls: allocating takes longer than a small call.
class Arena {
 public:
  Scratch get(std::int64_t dim, std::int64_t channels) {
    const std::size_t rows = bytes(dim * sizeof(float)), staging = bytes(channels * sizeof(float));
    const std::size_t total = rows + staging + bytes(channels);
    if (total > size_) {
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, total)));
      if (!memory_) throw std::bad_alloc();
      size_ = total;
    }
    char* data = memory_.get();
    return {reinterpret_cast<float*>(data), reinterpret_cast<float*>(data + rows),
            reinterpret_cast<std::uint8_t*>(data + rows + staging)};
  }

 private:
  static std::size_t bytes(std::size_t row) { return row * kTile; }

  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  std::size_t size_ = 0;
};

Scratch scratch_of(std::int64_t dim, std::int64_t channels) {
  thread_local Arena arena;
  return arena.get(dim, channels);
}

}  // namespace

const Kernels& kernels() { return *in_use().load(std::memory_order_relaxed); }

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
  return names;
}

void use_isa(const std::string& name) {
  for (const Kernels* kernels : available())
    if (name == kernels->name) return in_use().store(kernels, std::memory_order_relaxed);
  std::string names;
  for (const std::string& isa : isas()) names += (names.empty() ? "" : ", ") + isa;
  throw std::invalid_argument("isa: expected one of " + names + " on this machine, got " + name);
}

void for_tiles(TileLoop loop, const Call& call, std::int64_t n, std::int64_t area, std::int64_t channels, int threads) {
  // Elements below which a second thread costs more than it gives.
  constexpr std::int64_t kGrain = 1 << 15;
  const std::int64_t tiles = n * ((area + kTile - 1) / kTile);
  const std::int64_t useful = std::min<std::int64_t>(tiles, n * area * channels / kGrain);
  const int team = static_cast<int>(std::min<std::int64_t>(threads, std::max<std::int64_t>(1, useful)));
  if (team == 1) return loop(call, scratch_of(call.plan.dim, channels), 0, tiles);
#pragma omp parallel for num_threads(team) schedule(static)
  for (int part = 0; part < team; ++part)
    loop(call, scratch_of(call.plan.dim, channels), tiles * part / team, tiles * (part + 1) / team);
}

}  // namespace ppcmi

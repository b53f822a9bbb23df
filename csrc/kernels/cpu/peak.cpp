// peak: additions and multiply-adds in registers alone, the arithmetic roof that benchmarks measure operators against.
#include "kernels.h"
#include "vec.h"

namespace ppcmi {
namespace PPCMI_ISA {

namespace {

constexpr int kChains = 12;  // independent, so that none waits for the one before

template <bool kFused>
float run(std::int64_t rounds, float step) {
  Vec chain[kChains];
  PPCMI_UNROLL for (int i = 0; i < kChains; ++i) chain[i] = broadcast(static_cast<float>(i) * step);
  const Vec term = broadcast(step);
  for (std::int64_t r = 0; r < rounds; ++r)
    PPCMI_UNROLL for (int i = 0; i < kChains; ++i) chain[i] = kFused ? chain[i] * term + term : chain[i] + term;
  Vec sum = chain[0];
  PPCMI_UNROLL for (int i = 1; i < kChains; ++i) sum = sum + chain[i];
  return sum[0];
}

}  // namespace

float peak(std::int64_t rounds, float step, bool fused) {
  return fused ? run<true>(rounds, step) : run<false>(rounds, step);
}

std::int64_t peak_operations(std::int64_t rounds) { return rounds * kChains * kLanes; }

}  // namespace PPCMI_ISA
}  // namespace ppcmi

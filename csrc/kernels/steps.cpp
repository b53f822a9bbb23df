#include "steps.h"

namespace ppcmi {

namespace {

// The log2(power) stages of a transform, radix_bits at a time from the lowest on; the last group takes the rest.
std::vector<Step> stages(std::int64_t power, int radix_bits) {
  std::vector<Step> groups;
  int low = 0;
  do {
    Step step;
    step.low = low;
    step.turns = 1;
    while (step.bits < radix_bits && std::int64_t{1} << (low + step.bits) < power) ++step.bits;
    groups.push_back(step);
    low += step.bits;
  } while (std::int64_t{1} << low < power);
  return groups;
}

bool joins(const Step& last, const Step& next) {
  return !last.factor && last.turns == 1 && !last.signs[0] && last.low == next.low && last.bits == next.bits;
}

void add_round(const std::vector<Step>& groups, const float* signs, const float* factor, bool transposed, bool upwards,
               std::vector<Step>& steps) {
  if (factor) {
    Step step;
    step.signs[0] = signs;
    step.factor = factor;
    step.transposed = transposed;
    steps.push_back(step);
    signs = nullptr;
  }
  for (std::size_t i = 0; i < groups.size(); ++i) {
    Step step = groups[upwards ? i : groups.size() - 1 - i];
    if (!steps.empty() && joins(steps.back(), step)) {
      steps.back().signs[steps.back().turns++] = signs;
    } else {
      step.signs[0] = signs;
      steps.push_back(step);
    }
    signs = nullptr;
  }
}

}  // namespace

void plan_steps(const Material& m, bool inverse, int radix_bits, std::vector<Step>& steps) {
  const std::vector<Step> groups = stages(m.dim / m.odd, radix_bits);
  steps.clear();
  for (std::int64_t i = 0; i < m.rounds; ++i) {
    // The way back ends each round with its signs: they begin the next one.
    const std::int64_t r = inverse ? m.rounds - i : i;
    const float* signs = inverse && i == 0 ? nullptr : m.mix + r * m.dim;
    const float* factor = m.odd > 1 ? m.factors + (inverse ? r - 1 : r) * m.odd * m.odd : nullptr;
    // The order alternates, downwards first, so that a round can begin with the rows that the one before it ended with.
    add_round(groups, signs, factor, inverse, i % 2 == 1, steps);
  }
  if (steps.back().factor) steps.push_back(Step{});
}

}  // namespace ppcmi

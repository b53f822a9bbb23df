#include "planning.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace ppcmi {

namespace {

// The log2(power) stages of a transform, radix_bits at a time from the lowest on; the last group takes the rest.
void fill_stages(std::int64_t power, int radix_bits, std::vector<Step>& groups) {
  groups.clear();
  int low = 0;
  do {
    Step step;
    step.low = low;
    step.turns = 1;
    while (step.bits < radix_bits && std::int64_t{1} << (low + step.bits) < power) ++step.bits;
    groups.push_back(step);
    low += step.bits;
  } while (std::int64_t{1} << low < power);
}

bool joins(const Step& last, const Step& next) {
  return !last.factor && last.turns == 1 && !last.signs[0] && last.low == next.low && last.bits == next.bits;
}

void fill_tables(const Codebook& thresholds, Cells& cells) {
  const int count = (1 << thresholds.bits) - 1;
  std::memset(cells.below, 255, sizeof cells.below);
  for (int cell = 0, code = 0; cell < 256; ++cell) {
    if (cell % 16 == 0) cells.base[cell / 16] = static_cast<std::uint8_t>(code);
    while (code < count && cell == std::lround(thresholds.table[code] * kCellsPerUnit) + 128) {
      // The very first cell of a group is in its base already.
      const int group = cell / 16;
      if (cell % 16 == 0) {
        ++cells.base[group];
      } else {
        cells.below[cells.below[0][group] == 255 ? 0 : 1][group] = static_cast<std::uint8_t>(cell - 1);
      }
      ++code;
    }
    cells.table[cell] = static_cast<std::uint8_t>(code);
  }
}

}  // namespace

Plan Planning::plain(std::int64_t outputs, std::int64_t dim) {
  const auto size = static_cast<std::size_t>(std::max(outputs, dim));
  if (identity_.size() < size) {
    identity_.resize(size);
    std::iota(identity_.begin(), identity_.end(), 0);
    zeros_.assign(size, 0.0f);
    ones_.assign(size, 1.0f);
  }
  Plan plan{};
  plan.dim = dim;
  plan.outputs = outputs;
  plan.odd = 1;
  plan.scale = 1.0f;
  plan.source_place = plan.result_place = identity_.data();
  plan.source_offset = plan.result_offset = zeros_.data();
  plan.result_factor = ones_.data();
  return plan;
}

Plan Planning::product(std::int64_t outputs, std::int64_t dim) { return plain(outputs, dim); }

void Planning::add_round(const float* signs, const float* factor, bool transposed, bool upwards) {
  if (factor) {
    Step step;
    step.signs[0] = signs;
    step.factor = factor;
    step.transposed = transposed;
    steps_.push_back(step);
    signs = nullptr;
  }
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    Step step = groups_[upwards ? i : groups_.size() - 1 - i];
    if (!steps_.empty() && joins(steps_.back(), step)) {
      steps_.back().signs[steps_.back().turns++] = signs;
    } else {
      step.signs[0] = signs;
      steps_.push_back(step);
    }
    signs = nullptr;
  }
}

Plan Planning::mixing(const Material& m, bool inverse, bool normalize, int radix_bits) {
  Plan plan = plain(m.dim, m.dim);
  plan.normalize = normalize;
  if (m.offset) (inverse ? plan.source_offset : plan.result_offset) = m.offset;
  if (m.rounds == 0) {
    plan.matrix = m.mix;
    plan.transposed = inverse;
    return plan;
  }
  const std::int64_t power = m.dim / m.odd;
  fill_stages(power, radix_bits, groups_);
  steps_.clear();
  for (std::int64_t i = 0; i < m.rounds; ++i) {
    // The way back ends each round with its signs: they begin the next one, and the last ones multiply the result.
    const std::int64_t r = inverse ? m.rounds - i : i;
    const float* signs = inverse && i == 0 ? nullptr : m.mix + r * m.dim;
    const float* factor = m.odd > 1 ? m.factors + (inverse ? r - 1 : r) * m.odd * m.odd : nullptr;
    // The order alternates, downwards first, so that a round can begin with the rows that the one before it ended with.
    add_round(signs, factor, inverse, i % 2 == 1);
  }
  if (steps_.back().factor) steps_.push_back(Step{});
  plan.odd = m.odd;
  plan.steps = steps_.data();
  plan.step_count = static_cast<int>(steps_.size());
  place_.resize(m.dim);
  for (std::int64_t i = 0; i < m.dim; ++i) place_[m.perm[i]] = static_cast<std::int32_t>(i);
  (inverse ? plan.source_place : plan.result_place) = place_.data();
  plan.scale = std::pow(static_cast<float>(power), -0.5f * static_cast<float>(m.rounds));
  if (inverse) {
    factors_.resize(m.dim);
    for (std::int64_t d = 0; d < m.dim; ++d) factors_[d] = plan.scale * m.mix[d];
    plan.result_factor = factors_.data();
  }
  return plan;
}

Cells Planning::cells(const Codebook& thresholds, Plan& plan) {
  Cells cells{};
  cells.bits = thresholds.bits;
  const int count = (1 << thresholds.bits) - 1;
  const float span = thresholds.table[count - 1] - thresholds.table[0];
  const float inverse_step = thresholds.bits == 8 ? static_cast<float>(count - 1) / span : kCellsPerUnit;
  if (thresholds.bits < 8) fill_tables(thresholds, cells);
  plan.scale *= inverse_step;
  offset_.resize(plan.outputs);
  for (std::int64_t d = 0; d < plan.outputs; ++d) offset_[d] = plan.result_offset[d] * inverse_step + 128.0f;
  plan.result_offset = offset_.data();
  return cells;
}

Levels plan_levels(const Codebook& levels) {
  Levels plan{};
  plan.bits = levels.bits;
  const int count = 1 << levels.bits;
  plan.first = levels.table[0];
  plan.step = (levels.table[count - 1] - levels.table[0]) / static_cast<float>(count - 1);
  if (levels.bits < 8)
    for (int i = 0; i < 16; ++i) plan.table[i] = levels.table[i % count];
  return plan;
}

}  // namespace ppcmi

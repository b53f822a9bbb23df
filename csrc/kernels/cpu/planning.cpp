#include "planning.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ppcmi {

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
  plan_steps(m, inverse, radix_bits, steps_);
  plan.odd = m.odd;
  plan.steps = steps_.data();
  plan.step_count = static_cast<int>(steps_.size());
  place_.resize(m.dim);
  for (std::int64_t i = 0; i < m.dim; ++i) place_[m.perm[i]] = static_cast<std::int32_t>(i);
  (inverse ? plan.source_place : plan.result_place) = place_.data();
  plan.scale = std::pow(static_cast<float>(power), -0.5f * static_cast<float>(m.rounds));
  if (inverse) {
    factors_.resize(m.dim);
    // The signs with which the way back ends.
    for (std::int64_t d = 0; d < m.dim; ++d) factors_[d] = plan.scale * m.mix[d];
    plan.result_factor = factors_.data();
  }
  return plan;
}

Cells Planning::cells(const Codebook& thresholds, Plan& plan) {
  const Cells cells = make_cells(thresholds);
  plan.scale *= cells.inverse_step;
  offset_.resize(plan.outputs);
  for (std::int64_t d = 0; d < plan.outputs; ++d) offset_[d] = plan.result_offset[d] * cells.inverse_step + 128.0f;
  plan.result_offset = offset_.data();
  return cells;
}

}  // namespace ppcmi

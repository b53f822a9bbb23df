#include "mixing.h"

#include <cmath>

namespace ppcmi {

void normalize_rows(float* rows, std::int64_t dim) {
  // In blocks of this many terms: the rounding error then grows with the number of blocks and not with dim.
  constexpr std::int64_t kBlock = 32;
  float sums[kTile] = {};
  for (std::int64_t first = 0; first < dim; first += kBlock) {
    const std::int64_t end = std::min(dim, first + kBlock);
    float part[kTile] = {};
    for (std::int64_t d = first; d < end; ++d)
      for (std::int64_t t = 0; t < kTile; ++t) part[t] += rows[d * kTile + t] * rows[d * kTile + t];
    for (std::int64_t t = 0; t < kTile; ++t) sums[t] += part[t];
  }
  for (std::int64_t t = 0; t < kTile; ++t) sums[t] = 1.0f / std::sqrt(sums[t] / static_cast<float>(dim) + 1e-12f);
  for (std::int64_t d = 0; d < dim; ++d)
    for (std::int64_t t = 0; t < kTile; ++t) rows[d * kTile + t] *= sums[t];
}

void multiply(const float* matrix, bool transposed, const float* rows, std::int64_t outputs, std::int64_t dim,
              float* spare) {
  const std::int64_t step_i = transposed ? 1 : dim, step_j = transposed ? outputs : 1;
  for (std::int64_t i = 0; i < outputs; ++i) {
    const float* weights = matrix + i * step_i;
    float sums[kTile] = {};
    std::int64_t j = 0;
    // Four terms a visit: a quarter of the loads and stores of the sums, and of their rounding error (1.5 times the
    // speed of one term for four outputs; blocks of 4 x 8 sums meant for registers were three times slower, GCC 12).
    for (; j + 4 <= dim; j += 4) {
      const float a = weights[j * step_j], b = weights[(j + 1) * step_j];
      const float c = weights[(j + 2) * step_j], d = weights[(j + 3) * step_j];
      const float* row = rows + j * kTile;
      for (std::int64_t t = 0; t < kTile; ++t)
        sums[t] += (a * row[t] + b * row[kTile + t]) + (c * row[2 * kTile + t] + d * row[3 * kTile + t]);
    }
    for (; j < dim; ++j)
      for (std::int64_t t = 0; t < kTile; ++t) sums[t] += weights[j * step_j] * rows[j * kTile + t];
    std::copy(sums, sums + kTile, spare + i * kTile);
  }
}

namespace {

void scale_rows(float* rows, const float* signs, float scale, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; ++d)
    for (std::int64_t t = 0; t < kTile; ++t) rows[d * kTile + t] *= signs[d] * scale;
}

// Walsh-Hadamard transform of each run of `power` rows, without the factor 1 / sqrt(power).
void walsh_hadamard(float* rows, std::int64_t dim, std::int64_t power) {
  for (std::int64_t span = 1; span < power; span *= 2)
    for (std::int64_t base = 0; base < dim; base += 2 * span)
      for (std::int64_t d = base; d < base + span; ++d) {
        float *a = rows + d * kTile, *b = a + span * kTile;
        for (std::int64_t t = 0; t < kTile; ++t) {
          const float sum = a[t] + b[t], difference = a[t] - b[t];
          a[t] = sum;
          b[t] = difference;
        }
      }
}

// Rows seen as [odd][power]: mixes the `odd` runs by `factor` [odd][odd] (or its transpose).
void mix_runs(float* rows, float* spare, const float* factor, bool transposed, std::int64_t odd, std::int64_t power) {
  if (odd == 1) return;
  for (std::int64_t p = 0; p < power; ++p) {
    for (std::int64_t a = 0; a < odd; ++a) {
      float sums[kTile] = {};
      for (std::int64_t b = 0; b < odd; ++b) {
        const float weight = factor[transposed ? b * odd + a : a * odd + b];
        for (std::int64_t t = 0; t < kTile; ++t) sums[t] += weight * rows[(b * power + p) * kTile + t];
      }
      std::copy(sums, sums + kTile, spare + a * kTile);
    }
    for (std::int64_t a = 0; a < odd; ++a)
      std::copy(spare + a * kTile, spare + (a + 1) * kTile, rows + (a * power + p) * kTile);
  }
}

}  // namespace

float* mix(const Material& m, float* rows, float* spare) {
  if (m.rounds == 0) {
    multiply(m.mix, false, rows, m.dim, m.dim, spare);
  } else {
    const std::int64_t power = m.dim / m.odd;
    const float scale = 1.0f / std::sqrt(static_cast<float>(power));
    for (std::int64_t r = 0; r < m.rounds; ++r) {
      scale_rows(rows, m.mix + r * m.dim, scale, m.dim);
      walsh_hadamard(rows, m.dim, power);
      mix_runs(rows, spare, m.factors + r * m.odd * m.odd, false, m.odd, power);
    }
    for (std::int64_t d = 0; d < m.dim; ++d)
      std::copy(rows + m.perm[d] * kTile, rows + (m.perm[d] + 1) * kTile, spare + d * kTile);
  }
  if (m.offset)
    for (std::int64_t d = 0; d < m.dim; ++d)
      for (std::int64_t t = 0; t < kTile; ++t) spare[d * kTile + t] += m.offset[d];
  return spare;
}

float* unmix(const Material& m, float* rows, float* spare) {
  if (m.offset)
    for (std::int64_t d = 0; d < m.dim; ++d)
      for (std::int64_t t = 0; t < kTile; ++t) rows[d * kTile + t] -= m.offset[d];
  if (m.rounds == 0) {
    multiply(m.mix, true, rows, m.dim, m.dim, spare);
    return spare;
  }
  const std::int64_t power = m.dim / m.odd;
  const float scale = 1.0f / std::sqrt(static_cast<float>(power));
  for (std::int64_t d = 0; d < m.dim; ++d)
    std::copy(rows + d * kTile, rows + (d + 1) * kTile, spare + m.perm[d] * kTile);
  for (std::int64_t r = m.rounds; r-- > 0;) {
    mix_runs(spare, rows, m.factors + r * m.odd * m.odd, true, m.odd, power);
    walsh_hadamard(spare, m.dim, power);
    scale_rows(spare, m.mix + r * m.dim, scale, m.dim);
  }
  return spare;
}

}  // namespace ppcmi

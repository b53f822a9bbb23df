// Normalization and mixing of a tile, shared by the operators. Rows are [dim][kTile]; `spare` has as many rows.
#pragma once

#include "tile.h"

namespace ppcmi {

// Divides every position's vector by its root mean square; a zero vector stays zero.
void normalize_rows(float* rows, std::int64_t dim);

// spare[i] = sum_j matrix[i][j] rows[j], matrix [outputs][dim] (or its transpose [dim][outputs]).
void multiply(const float* matrix, bool transposed, const float* rows, std::int64_t outputs, std::int64_t dim,
              float* spare);

// M rows + offset and M^T (rows - offset). The result is in the returned buffer, which is `rows` or `spare`.
float* mix(const Material& material, float* rows, float* spare);
float* unmix(const Material& material, float* rows, float* spare);

}  // namespace ppcmi

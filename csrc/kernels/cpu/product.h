// The dense product of a matrix with a tile's rows.
#pragma once

#include "tile.h"

namespace ppcmi {
namespace PPCMI_ISA {

// kOut outputs by kWide vectors of positions, summed over dim in registers.
template <int kOut, int kWide, typename Sink>
PPCMI_INLINE void product_block(const float* weights, std::int64_t next_out, std::int64_t next_in, const Rows& rows,
                                std::int64_t out, int b, const Sink& sink) {
  // Sums of so many terms are added to the total: a single chain over a large dim would round worse than torch does.
  constexpr std::int64_t kChunk = 128;
  Vec total[kOut][kWide] = {};
  for (std::int64_t from = 0; from < rows.dim; from += kChunk) {
    const std::int64_t end = from + kChunk < rows.dim ? from + kChunk : rows.dim;
    Vec sum[kOut][kWide] = {};
    for (std::int64_t d = from; d < end; ++d) {
      Vec in[kWide];
      PPCMI_UNROLL for (int w = 0; w < kWide; ++w) in[w] = load(Rows::at(rows, d, b + w));
      PPCMI_UNROLL for (int o = 0; o < kOut; ++o) {
        const float weight = weights[o * next_out + d * next_in];
        PPCMI_UNROLL for (int w = 0; w < kWide; ++w) sum[o][w] = sum[o][w] + in[w] * weight;
      }
    }
    PPCMI_UNROLL for (int o = 0; o < kOut; ++o) PPCMI_UNROLL for (int w = 0; w < kWide; ++w) total[o][w] =
        total[o][w] + sum[o][w];
  }
  PPCMI_UNROLL for (int o = 0; o < kOut; ++o) PPCMI_UNROLL for (int w = 0; w < kWide; ++w)
      sink(out + o, b + w, total[o][w]);
}

// sink(o, block) = sum over d of matrix[o][d] rows[d], matrix [outputs, rows.dim] or its transpose.
template <typename Sink>
void product(const float* matrix, bool transposed, std::int64_t outputs, int blocks, const Rows& rows,
             const Sink& sink) {
  constexpr int kOut = PPCMI_LANES == 16 ? 6 : 4, kWide = PPCMI_LANES == 16 ? 4 : 2;
  const std::int64_t next_out = transposed ? 1 : rows.dim, next_in = transposed ? outputs : 1;
  int b = 0;
  for (; b + kWide <= blocks; b += kWide) {
    std::int64_t out = 0;
    for (; out + kOut <= outputs; out += kOut)
      product_block<kOut, kWide>(matrix + out * next_out, next_out, next_in, rows, out, b, sink);
    for (; out < outputs; ++out)
      product_block<1, kWide>(matrix + out * next_out, next_out, next_in, rows, out, b, sink);
  }
  for (; b < blocks; ++b) {
    std::int64_t out = 0;
    for (; out + kOut <= outputs; out += kOut)
      product_block<kOut, 1>(matrix + out * next_out, next_out, next_in, rows, out, b, sink);
    for (; out < outputs; ++out) product_block<1, 1>(matrix + out * next_out, next_out, next_in, rows, out, b, sink);
  }
}

}  // namespace PPCMI_ISA
}  // namespace ppcmi

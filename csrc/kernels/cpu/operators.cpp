// The functions of ops.h: a plan for the call, then its tiles.
#include <algorithm>

#include "dispatch.h"
#include "planning.h"

namespace ppcmi {

namespace {

Planning& planning() {
  thread_local Planning planning;
  return planning;
}

}  // namespace

void klt(const Image& x, const Image& out, const Material& material, int fold, bool normalize, bool inverse,
         int threads) {
  const Kernels& run = kernels();
  Call call{};
  call.source = x;
  call.result = out;
  call.source_fold = inverse ? 1 : fold;
  call.result_fold = inverse ? fold : 1;
  call.inverse = inverse;
  call.plan = planning().mixing(material, inverse, normalize, run.radix_bits);
  const Image& grid = inverse ? x : out;
  for_tiles(run.klt, call, grid.n, grid.h * grid.w, material.dim, threads);
}

void klt_quantize(const Image& x, const Image& codes, const Material& material, int fold, bool normalize,
                  const Codebook& thresholds, int threads) {
  const Kernels& run = kernels();
  Call call{};
  call.source = x;
  call.result = codes;
  call.source_fold = fold;
  call.plan = planning().mixing(material, false, normalize, run.radix_bits);
  call.cells = planning().cells(thresholds, call.plan);
  for_tiles(run.klt_quantize, call, codes.n, codes.h * codes.w, material.dim, threads);
}

void klt_dequantize(const Image& codes, const Image& out, const Material& material, int fold, const Codebook& levels,
                    int threads) {
  const Kernels& run = kernels();
  Call call{};
  call.source = codes;
  call.result = out;
  call.result_fold = fold;
  call.plan = planning().mixing(material, true, false, run.radix_bits);
  call.levels = make_levels(levels);
  for_tiles(run.klt_dequantize, call, codes.n, codes.h * codes.w, material.dim, threads);
}

void switch_dequantize(const Image& codes, const Image& out, const Matrices& matrices, const Codebook& levels,
                       int threads) {
  const std::int64_t dim = codes.c * (8 / levels.bits);
  Call call{};
  call.source = codes;
  call.result = out;
  call.plan = planning().product(out.c, dim);
  call.levels = make_levels(levels);
  call.matrices = matrices;
  for_tiles(kernels().switch_dequantize, call, codes.n, codes.h * codes.w, std::max(dim, out.c), threads);
}

}  // namespace ppcmi

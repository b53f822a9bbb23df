// The operators of ../ops.h on a CUDA device. Images and key material lie there, the codebook's table does not. The
// work is put on `stream`: no synchronization, no allocation. Throws std::runtime_error naming file, line and reason.
#pragma once

#include "../ops.h"
#include "portable.h"

namespace ppcmi::cuda {

void klt(const Image& x, const Image& out, const Material& material, int fold, bool normalize, bool inverse,
         cudaStream_t stream);

void klt_quantize(const Image& x, const Image& codes, const Material& material, int fold, bool normalize,
                  const Codebook& thresholds, cudaStream_t stream);

void klt_dequantize(const Image& codes, const Image& out, const Material& material, int fold, const Codebook& levels,
                    cudaStream_t stream);

void switch_dequantize(const Image& codes, const Image& out, const Matrices& matrices, const Codebook& levels,
                       cudaStream_t stream);

}  // namespace ppcmi::cuda

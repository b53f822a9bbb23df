// The operators' loops over tiles, once for each instruction set.
#pragma once

#include "plan.h"

namespace ppcmi {

#define PPCMI_DECLARE_KERNELS(isa)                                                                         \
  namespace isa {                                                                                          \
  void klt(const Call& call, const Scratch& scratch, std::int64_t first, std::int64_t last);               \
  void klt_quantize(const Call& call, const Scratch& scratch, std::int64_t first, std::int64_t last);      \
  void klt_dequantize(const Call& call, const Scratch& scratch, std::int64_t first, std::int64_t last);    \
  void switch_dequantize(const Call& call, const Scratch& scratch, std::int64_t first, std::int64_t last); \
  float peak(std::int64_t rounds, float step, bool fused);                                                 \
  std::int64_t peak_operations(std::int64_t rounds);                                                       \
  }

PPCMI_DECLARE_KERNELS(portable)
PPCMI_DECLARE_KERNELS(avx2)
PPCMI_DECLARE_KERNELS(avx512)

}  // namespace ppcmi

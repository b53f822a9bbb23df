// Which instruction set the operators run on, and how a call's tiles are shared among threads.
#pragma once

#include <string>
#include <vector>

#include "plan.h"

namespace ppcmi {

using TileLoop = void (*)(const Call& call, const Scratch& scratch, std::int64_t first, std::int64_t last);

struct Kernels {
  const char* name;
  int radix_bits;
  TileLoop klt, klt_quantize, klt_dequantize, switch_dequantize;
  // Additions, or multiply-adds, in registers alone, `peak_operations(rounds)` of them; the result is of no use.
  float (*peak)(std::int64_t rounds, float step, bool fused);
  std::int64_t (*peak_operations)(std::int64_t rounds);
};

// Of the instruction set in use: the best that this machine has, until use_isa names another.
const Kernels& kernels();

// What this build and this machine both have, the best first.
std::vector<std::string> isas();

// Throws std::invalid_argument for a name that is not among isas(). Not to be called while an operator runs.
void use_isa(const std::string& name);

// Runs the loop over the tiles of `n` samples of `area` positions, shared by up to `threads` threads. `channels` is the
// largest number of rows that a tile is staged in.
void for_tiles(TileLoop loop, const Call& call, std::int64_t n, std::int64_t area, std::int64_t channels, int threads);

}  // namespace ppcmi

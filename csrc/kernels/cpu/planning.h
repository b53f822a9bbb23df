// Turns key material and codebooks into what the tile loops read. The tables live in the object, which a caller keeps
// for the length of its call (one per thread, so that a small call allocates nothing).
#pragma once

#include <vector>

#include "plan.h"

namespace ppcmi {

class Planning {
 public:
  Plan mixing(const Material& material, bool inverse, bool normalize, int radix_bits);

  // The product with a matrix that the tile loop names itself.
  Plan product(std::int64_t outputs, std::int64_t dim);

  // Multiplies the result by the cells' scale and moves it onto their grid.
  Cells cells(const Codebook& thresholds, Plan& plan);

 private:
  Plan plain(std::int64_t outputs, std::int64_t dim);

  std::vector<Step> steps_;
  std::vector<std::int32_t> identity_, place_;
  std::vector<float> zeros_, ones_, factors_, offset_;
};

}  // namespace ppcmi

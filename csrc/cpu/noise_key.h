// What keyed noise is a function of, besides the element.
#pragma once

#include <cstdint>

namespace fastflow {

struct NoiseKey {
  uint64_t seed;
  uint32_t step;
  const int64_t* rows;  // the global index of each row; nullptr: no noise
  int64_t stride;
};

}  // namespace fastflow

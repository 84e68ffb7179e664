// What the CPU kernel of permute is given.
#pragma once

#include "cpu/row_op.h"

namespace fastflow {

struct Permute {
  bool in_double;
  int64_t columns;
  const int32_t* order;  // with zeros up to a multiple of 16
  const char* from;
  int64_t from_pitch;  // elements
  char* to;
};

}  // namespace fastflow

FASTFLOW_DECLARE_KERNEL(permute, Permute)

// What the CPU kernels of logit are given.
#pragma once

#include "cpu/row_op.h"

namespace fastflow {

struct Logit : RowOp {
  double alpha;
  bool inverse;
};

}  // namespace fastflow

FASTFLOW_DECLARE_KERNEL(logit, Logit)
FASTFLOW_DECLARE_KERNEL(logit_backward, Logit)

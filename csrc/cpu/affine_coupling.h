// What the CPU kernels of affine_coupling are given.
#pragma once

#include "cpu/row_op.h"

namespace fastflow {

struct AffineCoupling : RowOp {
  int kind;  // the index in fastflow.ops.scale_map.KINDS
  double bias, eps, clamp;
  bool shift_first, inverse, from_input;
};

}  // namespace fastflow

FASTFLOW_DECLARE_KERNEL(affine_coupling, AffineCoupling)
FASTFLOW_DECLARE_KERNEL(affine_coupling_backward, AffineCoupling)

// What the CPU kernel of dequantize_logit is given.
#pragma once

#include "cpu/noise_key.h"
#include "cpu/row_op.h"

namespace fastflow {

struct DequantizeLogit : RowOp {  // its X and Z are dense
  NoiseKey key;
  bool wide;  // X is int32, not uint8
  int64_t levels;
  double alpha;
};

}  // namespace fastflow

FASTFLOW_DECLARE_KERNEL(dequantize_logit, DequantizeLogit)

// What the CPU kernels of act_norm are given.
#pragma once

#include "cpu/row_op.h"

namespace fastflow {

// The parameters as the caller has them (their row_stride leads from channel to channel), and where they go.
struct ActNormParameters {
  Operand shift, log_scale;
  bool in_double, inverse;
  void* values;  // in the dtype of the arithmetic: the factor of every channel, then the shift of every channel
  double* sum;   // of log_scale
};

struct ActNorm : RowOp {  // GAIN are the factors
  int64_t channels;       // so many elements after a factor comes the shift
  bool subtracts;         // (x - shift) factor; otherwise x factor + shift
  double own_log_det;     // of a row
};

struct ActNormBackward : RowOp {  // GAIN as above
  int64_t channels;
  bool shifted;  // the shift is subtracted from what was saved
  double* sums;  // for every channel one of grad_z, then for every channel one of grad_z times what was saved
};

}  // namespace fastflow

FASTFLOW_DECLARE_KERNEL(act_norm_parameters, ActNormParameters)
FASTFLOW_DECLARE_KERNEL(act_norm, ActNorm)
FASTFLOW_DECLARE_KERNEL(act_norm_backward, ActNormBackward)

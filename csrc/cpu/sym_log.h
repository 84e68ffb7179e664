// What the CPU kernels of sym_log are given.
#pragma once

#include "cpu/row_op.h"

namespace fastflow {

struct SymLog : RowOp {
  bool inverse;
};

}  // namespace fastflow

FASTFLOW_DECLARE_KERNEL(sym_log, SymLog)
FASTFLOW_DECLARE_KERNEL(sym_log_backward, SymLog)

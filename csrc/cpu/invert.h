// What the CPU kernel of invert is given.
#pragma once

#include "cpu/row_op.h"

namespace fastflow {

struct Invert {
  int rows;
  double* matrix;  // [rows, rows], replaced by its inverse
  double* log_abs_det;
};

}  // namespace fastflow

// first_row and last_row are not used: a matrix is the work of one thread.
FASTFLOW_DECLARE_KERNEL(invert, Invert)

// Element-wise bijections without parameters as the dispatcher calls them: z and log_det of x, and the gradient of x.
//
// Op is a RowOp with the settings of the bijection; the caller fills these in, and names the kernel for this CPU.
#pragma once

#include <optional>
#include <tuple>

#include "tensors.h"

namespace fastflow {

template <class Op>
using Kernel = void (*)(const Op&, int64_t first_row, int64_t last_row);

inline void describe(RowOp& op, const Tensor& from, const Tensor& to, const std::optional<Tensor>& log_det) {
  op.in_double = dtype_of(from) == float64;
  op.rows = from.size(0);
  op.dims = static_cast<int>(from.dim()) - 1;
  for (int d = 0; d < op.dims; ++d) op.size[d] = from.size(d + 1);
  op.operand[X] = channels(from, 0, 1);
  op.operand[Z] = channels(to, 0, 1);
  if (!log_det) return;
  op.log_det = log_det->data_ptr();
  op.log_det_stride = log_det->stride(0);
}

template <class Op>
std::tuple<Tensor, Tensor> elementwise(Op op, Kernel<Op> kernel, const Tensor& x,
                                       const std::optional<Tensor>& log_det) {
  Tensor z = allocate_like(x), total = allocate_log_det(x);
  if (x.numel() == 0) {
    return {z, log_det ? torch::stable::copy_(total, *log_det) : torch::stable::zero_(total)};
  }
  describe(op, x, z, log_det);
  simplify(op.dims, op.size, op.operand, ROLES, Z);
  op.log_det_out = total.data_ptr();
  over_rows(op, kernel);
  return {z, total};
}

template <class Op>
Tensor elementwise_backward(Op op, Kernel<Op> kernel, const Tensor& grad_z, const std::optional<Tensor>& grad_log_det,
                            const Tensor& x) {
  Tensor grad_x = allocate_like(x);
  if (x.numel() == 0) return grad_x;
  describe(op, grad_z, grad_x, grad_log_det);
  op.operand[SAVED] = channels(x, 0, 1);
  simplify(op.dims, op.size, op.operand, ROLES, Z);
  over_rows(op, kernel);
  return grad_x;
}

}  // namespace fastflow

// logit and its backward for dispatch key CPU.
//
// Moved for an element in float32: forward and inverse 8 bytes, backward 12 (grad_z and the input in; grad_x out).
// Computed: forward a logarithm an element and one a row, inverse an exponential an element and a logarithm a row; in
// backward nothing such, or for the inverse an exponential. These decide, not the memory: 256 x 784 forward takes 110 us on
// one Zen 4 core, 18 % of a copy's rate (benchmarks/records/amd-epyc-20261121T172635Z.json).
#include "logit.h"

#include <optional>
#include <tuple>

#include "tensors.h"

namespace fastflow {
namespace {

Logit describe(const Tensor& from, const Tensor& to, double alpha, bool inverse) {
  Logit op = {};
  op.in_double = dtype_of(from) == float64;
  op.alpha = alpha;
  op.inverse = inverse;
  op.rows = from.size(0);
  op.dims = static_cast<int>(from.dim()) - 1;
  for (int d = 0; d < op.dims; ++d) op.size[d] = from.size(d + 1);
  op.operand[X] = channels(from, 0, 1);
  op.operand[Z] = channels(to, 0, 1);
  return op;
}

void set_log_det(Logit& op, const std::optional<Tensor>& log_det) {
  if (!log_det) return;
  op.log_det = log_det->data_ptr();
  op.log_det_stride = log_det->stride(0);
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, std::optional<Tensor> log_det, double alpha, bool inverse) {
  Tensor z = allocate_like(x), total = allocate_log_det(x);
  if (x.numel() == 0) {
    return {z, log_det ? torch::stable::copy_(total, *log_det) : torch::stable::zero_(total)};
  }
  Logit op = describe(x, z, alpha, inverse);
  simplify(op.dims, op.size, op.operand, ROLES, Z);
  set_log_det(op, log_det);
  op.log_det_out = total.data_ptr();
  over_rows(op, FASTFLOW_KERNEL(logit));
  return {z, total};
}

Tensor backward(const Tensor& grad_z, std::optional<Tensor> grad_log_det, const Tensor& x, double alpha, bool inverse) {
  Tensor grad_x = allocate_like(x);
  if (x.numel() == 0) return grad_x;
  Logit op = describe(grad_z, grad_x, alpha, inverse);
  op.operand[SAVED] = channels(x, 0, 1);
  simplify(op.dims, op.size, op.operand, ROLES, Z);
  set_log_det(op, grad_log_det);
  over_rows(op, FASTFLOW_KERNEL(logit_backward));
  return grad_x;
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("logit", TORCH_BOX(&fastflow::forward));
  library.impl("logit_backward", TORCH_BOX(&fastflow::backward));
}

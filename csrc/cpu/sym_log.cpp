// sym_log and its backward for dispatch key CPU.
//
// Moved for an element in float32: forward and inverse 8 bytes, backward 12 (grad_z and the input in; grad_x out).
// Computed for an element: forward a logarithm, inverse an exponential; in backward a division, or for the inverse an
// exponential.
#include "sym_log.h"

#include "elementwise.h"

namespace fastflow {
namespace {

SymLog settings(bool inverse) {
  SymLog op = {};
  op.inverse = inverse;
  return op;
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, std::optional<Tensor> log_det, bool inverse) {
  return elementwise(settings(inverse), FASTFLOW_KERNEL(sym_log), x, log_det);
}

Tensor backward(const Tensor& grad_z, std::optional<Tensor> grad_log_det, const Tensor& x, bool inverse) {
  return elementwise_backward(settings(inverse), FASTFLOW_KERNEL(sym_log_backward), grad_z, grad_log_det, x);
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("sym_log", TORCH_BOX(&fastflow::forward));
  library.impl("sym_log_backward", TORCH_BOX(&fastflow::backward));
}

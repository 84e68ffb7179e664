// invert for dispatch key CPU: C^3 fused multiply-adds in float64 on a matrix that stays in the first cache.
#include "invert.h"

#include <tuple>

#include "tensors.h"

namespace fastflow {
namespace {

std::tuple<Tensor, Tensor> inverse_and_log_abs_det(const Tensor& matrix) {
  Tensor inverse = allocate(matrix.sizes(), aoti_torch_dtype_float64());
  Tensor log_abs_det = allocate({}, aoti_torch_dtype_float64());
  torch::stable::copy_(inverse, matrix);
  const Invert op = {static_cast<int>(matrix.size(0)), static_cast<double*>(inverse.data_ptr()),
                     static_cast<double*>(log_abs_det.data_ptr())};
  FASTFLOW_KERNEL(invert)(op, 0, 1);
  return {inverse, log_abs_det};
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) { library.impl("invert", TORCH_BOX(&fastflow::inverse_and_log_abs_det)); }

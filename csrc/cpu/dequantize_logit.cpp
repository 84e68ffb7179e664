// dequantize_logit for dispatch key CPU.
//
// Moved for an element in float32: 5 bytes, the grey level in and z out. Computed: the noise (csrc/cpu/uniform_noise.cpp)
// and a logarithm an element, which decide, not the memory.
#include "dequantize_logit.h"

#include <optional>
#include <tuple>

#include "tensors.h"

namespace fastflow {
namespace {

std::tuple<Tensor, Tensor> dequantize_logit(const Tensor& x, std::optional<Tensor> seed, std::optional<Tensor> step,
                                            std::optional<Tensor> rows, int64_t levels, double alpha,
                                            torch::headeronly::ScalarType dtype) {
  const Tensor dense = x.is_contiguous() ? x : torch::stable::contiguous(x);
  Tensor z = allocate(x.sizes(), native_dtype(dtype)), log_det = allocate_log_det(z);
  if (x.numel() == 0) return {z, torch::stable::zero_(log_det)};
  DequantizeLogit op = {};
  op.in_double = dtype_of(z) == float64;
  op.rows = x.size(0);
  op.dims = 1;
  op.size[0] = x.numel() / op.rows;
  op.operand[X].data = static_cast<char*>(dense.data_ptr());
  op.operand[Z] = {static_cast<char*>(z.data_ptr()), dtype_of(z), op.size[0], {1}};
  op.log_det_out = log_det.data_ptr();
  if (rows) op.key = noise_key(*seed, *step, *rows);
  op.wide = x.scalar_type() == torch::headeronly::ScalarType::Int;
  op.levels = levels;
  op.alpha = alpha;
  over_rows(op, FASTFLOW_KERNEL(dequantize_logit));
  return {z, log_det};
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("dequantize_logit", TORCH_BOX(&fastflow::dequantize_logit));
}

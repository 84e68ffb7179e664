// uniform_noise for dispatch key CPU.
//
// Written for an element in float32: 4 bytes; nothing is read but the key. Computed: ten rounds of two multiplications
// for four elements.
#include "uniform_noise.h"

#include "tensors.h"

namespace fastflow {
namespace {

Tensor uniform_noise(const Tensor& seed, const Tensor& step, const Tensor& rows, int64_t elements,
                     torch::headeronly::ScalarType dtype) {
  Tensor noise = allocate({rows.size(0), elements}, native_dtype(dtype));
  if (noise.numel() == 0) return noise;
  UniformNoise op = {};
  op.in_double = dtype_of(noise) == float64;
  op.rows = rows.size(0);
  op.dims = 1;
  op.size[0] = elements;
  op.key = noise_key(seed, step, rows);
  op.noise = noise.data_ptr();
  over_rows(op, FASTFLOW_KERNEL(uniform_noise));
  return noise;
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) { library.impl("uniform_noise", TORCH_BOX(&fastflow::uniform_noise)); }

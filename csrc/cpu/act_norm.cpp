// act_norm and its backward for dispatch key CPU.
//
// Moved for an element in float32: forward and inverse 8 bytes, backward 12 (grad_z and what was saved in; grad_x out).
// Computed: two operations forward, five in backward; an exponential a channel. The memory decides, in and out of cache:
// the floor is what a copy into a new tensor takes, and for small tensors the call.
#include "act_norm.h"

#include <optional>
#include <tuple>
#include <vector>

#include "row_sums.h"
#include "tensors.h"

namespace fastflow {
namespace {

Operand parameter(const Tensor& tensor) {
  return {static_cast<char*>(tensor.data_ptr()), dtype_of(tensor), tensor.stride(0), {}};
}

// Factors and shifts in the dtype of the arithmetic, and the sum of log_scale.
struct Parameters {
  std::vector<double> storage;
  double log_scale_sum = 0;

  Parameters(const Tensor& shift, const Tensor& log_scale, bool in_double, bool inverse) : storage(2 * shift.size(0)) {
    const ActNormParameters op = {parameter(shift), parameter(log_scale), in_double,
                                  inverse,          storage.data(),       &log_scale_sum};
    FASTFLOW_KERNEL(act_norm_parameters)(op, 0, shift.size(0));
  }
};

template <class Op>
Op describe(const Tensor& from, const Tensor& to, Parameters& parameters) {
  Op op = {};
  op.in_double = dtype_of(from) == float64;
  op.rows = from.size(0);
  op.channels = from.size(1);
  op.dims = static_cast<int>(from.dim()) - 1;
  for (int d = 0; d < op.dims; ++d) op.size[d] = from.size(d + 1);
  op.operand[X] = channels(from, 0, 1);
  op.operand[Z] = channels(to, 0, 1);
  op.operand[GAIN] = {reinterpret_cast<char*>(parameters.storage.data()), op.in_double ? float64 : float32, 0, {1}};
  return op;
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& shift, const Tensor& log_scale,
                                   std::optional<Tensor> log_det, bool shift_first, bool inverse) {
  Tensor z = allocate_like(x), total = allocate_log_det(x);
  if (x.numel() == 0) {
    return {z, log_det ? torch::stable::copy_(total, *log_det) : torch::stable::zero_(total)};
  }
  Parameters parameters(shift, log_scale, dtype_of(x) == float64, inverse);
  ActNorm op = describe<ActNorm>(x, z, parameters);
  op.subtracts = shift_first != inverse;
  op.own_log_det = (inverse ? -1.0 : 1.0) * (elements_of_row(op) / op.channels) * parameters.log_scale_sum;
  if (log_det) {
    op.log_det = log_det->data_ptr();
    op.log_det_stride = log_det->stride(0);
  }
  op.log_det_out = total.data_ptr();
  simplify(op.dims, op.size, op.operand, ROLES, Z);
  over_rows(op, FASTFLOW_KERNEL(act_norm));
  return {z, total};
}

template <class T>
double sum_of(const Tensor& tensor) {
  const T* const data = static_cast<const T*>(tensor.data_ptr());
  double sum = 0;
  for (int64_t i = 0; i < tensor.size(0); ++i) sum += data[i * tensor.stride(0)];
  return sum;
}

// sums: of grad_z, and of grad_z times what was saved (without its shift), a channel.
template <class T>
void finish(const std::vector<double>& sums, const Parameters& parameters, bool subtracts, bool inverse,
            bool from_input, double from_log_det, Tensor& grad_shift, Tensor& grad_log_scale) {
  const int64_t channels = grad_shift.size(0);
  const T* const factor = reinterpret_cast<const T*>(parameters.storage.data());
  T* const shift = static_cast<T*>(grad_shift.data_ptr());
  T* const log_scale = static_cast<T*>(grad_log_scale.data_ptr());
  for (int64_t c = 0; c < channels; ++c) {
    const double scaled = (from_input ? factor[c] : 1.0) * sums[channels + c] + from_log_det;
    shift[c] = static_cast<T>(subtracts ? -factor[c] * sums[c] : sums[c]);
    log_scale[c] = static_cast<T>(inverse ? -scaled : scaled);
  }
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_z, std::optional<Tensor> grad_log_det,
                                            const Tensor& saved, const Tensor& shift, const Tensor& log_scale,
                                            bool shift_first, bool inverse, bool from_input) {
  const bool in_double = dtype_of(saved) == float64, subtracts = shift_first != inverse;
  const int32_t dtype = in_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  Tensor grad_x = allocate_like(saved);
  Tensor grad_shift = allocate(shift.sizes(), dtype), grad_log_scale = allocate(shift.sizes(), dtype);
  if (saved.numel() == 0) {
    return {grad_x, torch::stable::zero_(grad_shift), torch::stable::zero_(grad_log_scale)};
  }
  Parameters parameters(shift, log_scale, in_double, inverse);
  ActNormBackward op = describe<ActNormBackward>(grad_z, grad_x, parameters);
  op.operand[SAVED] = channels(saved, 0, 1);
  op.shifted = subtracts == from_input;
  const double pixels = elements_of_row(op) / op.channels;
  simplify(op.dims, op.size, op.operand, ROLES, Z);
  const auto kernel = FASTFLOW_KERNEL(act_norm_backward);
  const auto sums = sum_over_rows(op, 2 * op.channels, [&](double* of_chunk, int64_t first, int64_t last) {
    ActNormBackward part = op;
    part.sums = of_chunk;
    kernel(part, first, last);
  });
  const auto sum = in_double ? sum_of<double> : sum_of<float>;
  const double from_log_det = grad_log_det ? pixels * sum(*grad_log_det) : 0;
  (in_double ? finish<double> : finish<float>)(sums, parameters, subtracts, inverse, from_input, from_log_det,
                                               grad_shift, grad_log_scale);
  return {grad_x, grad_shift, grad_log_scale};
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("act_norm", TORCH_BOX(&fastflow::forward));
  library.impl("act_norm_backward", TORCH_BOX(&fastflow::backward));
}

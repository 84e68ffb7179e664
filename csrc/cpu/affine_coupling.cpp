// affine_coupling and its backward for dispatch key CPU: reads the tensors once, allocates, and gives rows to threads.
//
// Moved for an element that is transformed, with one that is passive beside it, in float32: forward and inverse 24 bytes
// (x twice, scale, shift in; z twice out), backward 32 (grad_z twice, saved, scale in; grad_x twice, grad_scale,
// grad_shift out), 36 where the form needs shift. With AVX-512, sigmoid + eps is 22 vector operations for 16 elements
// forward: in cache they decide, beyond the L3 the memory. Measured (benchmarks/records/amd-epyc-20261121T200934Z.json):
// 4096 x 64 forward, the call included, 165 us on one Zen 4 core, 43 % of a copy's rate; 65536 x 64, 60 %.
#include "affine_coupling.h"

#include <optional>
#include <tuple>
#include <vector>

#include "row_sums.h"
#include "tensors.h"

namespace fastflow {
namespace {

void add_copies(AffineCoupling& c, const Tensor& from, const Tensor& to, int64_t start, int64_t step, int64_t count) {
  const int64_t channels_of_x = from.size(1);
  const auto add = [&](int64_t first, int64_t size) {
    if (size == 0) return;
    Copy& copy = c.copy[c.copies++];
    copy.dims = static_cast<int>(from.dim()) - 1;
    for (int d = 0; d < copy.dims; ++d) copy.size[d] = from.size(d + 1);
    copy.size[0] = size;
    copy.operand[0] = channels(from, first, 1);
    copy.operand[1] = channels(to, first, 1);
    simplify(copy.dims, copy.size, copy.operand, 2, 1);
  };
  if (count == channels_of_x) return;
  if (step == 1) {
    add(0, start);
    add(start + count, channels_of_x - start - count);
    if (std::all_of(c.copy, c.copy + c.copies, [](const Copy& copy) { return copy.dims == 1; })) return;
  }
  // Passive channels in between active ones: faster to copy the whole row, and then to write the active part.
  c.copies = 0;
  add(0, channels_of_x);
}

struct Settings {
  int64_t start, step, kind;
  double bias, eps, clamp;
  bool shift_first, inverse;
};

AffineCoupling describe(const Tensor& from, const Tensor& to, const Tensor& shift, const std::optional<Tensor>& scale,
                        const std::optional<Tensor>& gain, const std::optional<Tensor>& mask, const Settings& k) {
  AffineCoupling c = {};
  c.in_double = dtype_of(from) == float64;
  c.kind = static_cast<int>(k.kind);
  c.bias = k.bias;
  c.eps = k.eps;
  c.clamp = k.clamp;
  c.shift_first = k.shift_first;
  c.inverse = k.inverse;
  c.rows = from.size(0);
  c.dims = static_cast<int>(from.dim()) - 1;
  for (int d = 0; d < c.dims; ++d) c.size[d] = shift.size(d + 1);
  c.operand[X] = channels(from, k.start, k.step);
  c.operand[Z] = channels(to, k.start, k.step);
  if (scale) c.operand[SCALE] = channels(*scale, 0, 1);
  if (gain) c.operand[GAIN] = {static_cast<char*>(gain->data_ptr()), dtype_of(*gain), 0, {1}};
  if (mask) {
    c.operand[MASK] = {static_cast<char*>(mask->data_ptr()), boolean, 0, {}};
    for (int d = 0; d < c.dims; ++d) c.operand[MASK].stride[d] = mask->stride(d);
  }
  add_copies(c, from, to, k.start, k.step, shift.size(1));
  return c;
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, std::optional<Tensor> scale, const Tensor& shift,
                                   std::optional<Tensor> gain, std::optional<Tensor> mask,
                                   std::optional<Tensor> log_det, int64_t start, int64_t step, int64_t kind,
                                   double bias, double eps, double clamp, bool shift_first, bool inverse) {
  Tensor z = allocate_like(x);
  Tensor total = allocate_log_det(x);
  if (shift.numel() == 0) {
    return {z, log_det ? torch::stable::copy_(total, *log_det) : torch::stable::zero_(total)};
  }
  AffineCoupling c = describe(x, z, shift, scale, gain, mask, {start, step, kind, bias, eps, clamp, shift_first, inverse});
  c.operand[SHIFT] = channels(shift, 0, 1);
  simplify(c.dims, c.size, c.operand, ROLES, Z);
  if (log_det) {
    c.log_det = log_det->data_ptr();
    c.log_det_stride = log_det->stride(0);
  }
  c.log_det_out = total.data_ptr();
  over_rows(c, FASTFLOW_KERNEL(affine_coupling));
  return {z, total};
}

void backward_with_gain(const AffineCoupling& c, Tensor& grad_gain) {
  const int64_t channels = c.gains;
  const auto kernel = FASTFLOW_KERNEL(affine_coupling_backward);
  std::vector<double> sums = sum_over_rows(c, 2 * channels, [&](double* of_chunk, int64_t first, int64_t last) {
    AffineCoupling part = c;
    part.operand[GRAD_GAIN].data = reinterpret_cast<char*>(of_chunk);
    kernel(part, first, last);
  });
  for (int64_t n = 0; n < channels; ++n) sums[n] += sums[channels + n];
  if (c.in_double) {
    std::copy_n(sums.data(), channels, static_cast<double*>(grad_gain.data_ptr()));
  } else {
    std::copy_n(sums.data(), channels, static_cast<float*>(grad_gain.data_ptr()));
  }
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_z, std::optional<Tensor> grad_log_det, const Tensor& saved, const Tensor& scale,
    const Tensor& shift, std::optional<Tensor> gain, std::optional<Tensor> mask, int64_t start, int64_t step,
    int64_t kind, double bias, double eps, double clamp, bool shift_first, bool inverse, bool from_input,
    int64_t packing) {
  Tensor grad_x = allocate_like(saved);
  Tensor grad_parameters = allocate_channels(scale, 2 * scale.size(1));
  Tensor grad_gain = gain ? allocate_like(*gain) : allocate({0}, native_dtype(scale));
  if (shift.numel() == 0) {
    torch::stable::zero_(grad_gain);
    return {grad_x, grad_parameters, grad_gain};
  }
  AffineCoupling c =
      describe(grad_z, grad_x, shift, scale, gain, mask, {start, step, kind, bias, eps, clamp, shift_first, inverse});
  c.from_input = from_input;
  c.operand[SAVED] = channels(saved, start, step);
  if ((shift_first == inverse) != from_input) c.operand[SHIFT] = channels(shift, 0, 1);
  const int64_t interleaved = packing >= 2, second = interleaved ? 1 : shift.size(1), shift_leads = packing % 2;
  c.operand[GRAD_SCALE] = channels(grad_parameters, shift_leads * second, 1 + interleaved);
  c.operand[GRAD_SHIFT] = channels(grad_parameters, (1 - shift_leads) * second, 1 + interleaved);
  c.gains = grad_gain.numel();
  if (gain) c.operand[GRAD_GAIN] = {static_cast<char*>(grad_gain.data_ptr()), float64, 0, {1}};
  simplify(c.dims, c.size, c.operand, ROLES, Z);
  if (grad_log_det) {
    c.log_det = grad_log_det->data_ptr();
    c.log_det_stride = grad_log_det->stride(0);
  }
  if (gain) {
    backward_with_gain(c, grad_gain);
  } else {
    over_rows(c, FASTFLOW_KERNEL(affine_coupling_backward));
  }
  return {grad_x, grad_parameters, grad_gain};
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("affine_coupling", TORCH_BOX(&fastflow::forward));
  library.impl("affine_coupling_backward", TORCH_BOX(&fastflow::backward));
}

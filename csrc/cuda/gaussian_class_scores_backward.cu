// gaussian_class_scores_backward for CUDA: the coefficients c = d loss / d scores of as many rows as they may take
// memory for (csrc/gaussian_class_plan.h), element by element from kept scores or else from scores made again, then the
// gradients from c. No atomics: sums over rows are taken in parts, added in their order.
//
// Up to 16 classes one kernel makes grad_z and the sums of the parameters, in 5 instructions an element of [B, K, D] (t
// = z - mean, c t, three sums); it reads z and writes grad_z. With more classes, 3 for grad_z and 4 for the parameters,
// apart. On an H200 at B = 65536, D = 784, K = 10, for which training keeps the scores: 1 us of memory to read them and
// write c, 96 us of memory or 86 us of arithmetic for the gradients. Forward and backward together take at least 149 us
// (146 for isotropic classes, whose forward pass is bound by memory), where 3 B D floats at copying speed are 143, and
// 50 us more if the scores are made again. Memory beside the results: c of 10 classes 3 % of z, of many at most 16 MiB
// of float32, and sums of 2 K D elements a part, of which there are as few as fill the device. As compiled for sm_90a,
// one class of grad_z's kernel is 107 instructions: 32 each of FADD, FMUL, FFMA and 4 LDS.128. Not yet timed on a
// device.
#include "cuda/gaussian_class_scores.h"

#include <tuple>

namespace fastflow {
namespace {

// Arguments as in gaussian_class_scores.cu; of its results marginal, and scores where they were kept; gradients of all
// three with any strides -> gradients of z, means, log_scales, log_prior and weights, [0] for those not asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gaussian_class_scores_backward(
    const Tensor& z, const Tensor& means, const Tensor& log_scales, const Tensor& log_prior, const MaybeTensor& labels,
    const MaybeTensor& weights, const Tensor& marginal, const MaybeTensor& scores, const MaybeTensor& grad_marginal,
    const MaybeTensor& grad_picked, const MaybeTensor& grad_scores, bool with_z, bool with_parameters,
    bool with_weights) {
  const auto result = [&](bool wanted, const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
    return wanted ? torch::stable::new_empty(like, sizes) : torch::stable::new_empty(means, {0});
  };
  Tensor grad_z = result(with_z, z, z.sizes()), grad_means = result(with_parameters, means, means.sizes());
  Tensor grad_log_scales = result(with_parameters, means, log_scales.sizes());
  Tensor grad_log_prior = result(with_parameters, means, log_prior.sizes());
  Tensor grad_weights = with_weights ? result(true, means, weights->sizes()) : result(false, means, {});
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  Device device("gaussian_class_scores_backward", z);
  const auto compute = [&](auto zero) {
    using T = decltype(zero);
    const gaussian::Gradients<T> gradients = {
        strided_of<T>(marginal), strided_of<T>(scores), strided_of<T>(grad_marginal), strided_of<T>(grad_picked),
        strided_of<T>(grad_scores), with_z, with_parameters, with_weights,
        {with_z ? grad_z.mutable_data_ptr() : nullptr, storage_of(z), z.size(1)},
        data_of<T>(grad_means), data_of<T>(grad_log_scales), data_of<T>(grad_log_prior), data_of<T>(grad_weights)};
    gaussian::backward(device, given_of<T>(z, means, log_scales, log_prior, labels, weights), gradients,
                       gaussian::rows_at_once(z.size(0), means.size(0), z.size(1)));
  };
  if (means.scalar_type() == ScalarType::Double) {
    compute(double());
  } else {
    compute(float());
  }
  return {grad_z, grad_means, grad_log_scales, grad_log_prior, grad_weights};
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow_cuda, CUDA, m) {  // as in gaussian_class_scores.cu
  m.impl("gaussian_class_scores_backward", TORCH_BOX(&fastflow::gaussian_class_scores_backward));
}

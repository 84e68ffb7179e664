// gaussian_class_scores_backward for CUDA.
#include "cuda/gaussian_class_scores.h"

#include <tuple>

namespace fastflow {
namespace {

// Arguments as in gaussian_class_scores.cu, gradients of its results with any strides -> gradients of z, means,
// log_scales, log_prior and weights, [0] for those not asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gaussian_class_scores_backward(
    const Tensor& z, const Tensor& means, const Tensor& log_scales, const Tensor& log_prior, const MaybeTensor& labels,
    const MaybeTensor& weights, const Tensor& marginal, const MaybeTensor& grad_marginal, const MaybeTensor& grad_picked,
    const MaybeTensor& grad_scores, bool with_z, bool with_parameters, bool with_weights) {
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
        strided_of<T>(marginal), strided_of<T>(grad_marginal), strided_of<T>(grad_picked), strided_of<T>(grad_scores),
        with_z, with_parameters, with_weights,
        {with_z ? grad_z.mutable_data_ptr() : nullptr, storage_of(z), z.size(1)},
        data_of<T>(grad_means), data_of<T>(grad_log_scales), data_of<T>(grad_log_prior), data_of<T>(grad_weights)};
    gaussian::backward(device, given_of<T>(z, means, log_scales, log_prior, labels, weights), gradients);
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

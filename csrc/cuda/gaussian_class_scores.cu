// gaussian_class_scores for CUDA.
#include "cuda/gaussian_class_scores.h"

#include <tuple>

namespace fastflow {
namespace {

// z [B, D] of any storage dtype and strides; means [K, D], log_scales [K or 1, D or 1], log_prior [K], weights [B, K] of
// its compute dtype; labels [B] int64 -> marginal [B], picked [B], scores [B, K] or [0].
std::tuple<Tensor, Tensor, Tensor> gaussian_class_scores(
    const Tensor& z, const Tensor& means, const Tensor& log_scales, const Tensor& log_prior, const MaybeTensor& labels,
    const MaybeTensor& weights, bool with_scores) {
  const int64_t rows = z.size(0), classes = means.size(0);
  Tensor marginal = torch::stable::new_empty(means, {rows}), picked = torch::stable::new_empty(means, {rows});
  Tensor scores = with_scores ? torch::stable::new_empty(means, {rows, classes}) : torch::stable::new_empty(means, {0});
  if (rows == 0) return {marginal, picked, scores};
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  Device device("gaussian_class_scores", z);
  const auto compute = [&](auto zero) {
    using T = decltype(zero);
    gaussian::forward(device, given_of<T>(z, means, log_scales, log_prior, labels, weights), data_of<T>(marginal),
                      data_of<T>(picked), with_scores ? data_of<T>(scores) : nullptr);
  };
  if (means.scalar_type() == ScalarType::Double) {
    compute(double());
  } else {
    compute(float());
  }
  return {marginal, picked, scores};
}

}  // namespace
}  // namespace fastflow

// Not under fastflow::, whose CUDA key belongs to the Python that weighs whether this kernel is proved. The schema is in
// fastflow/ops.
STABLE_TORCH_LIBRARY_IMPL(fastflow_cuda, CUDA, m) {
  m.impl("gaussian_class_scores", TORCH_BOX(&fastflow::gaussian_class_scores));
}

// Scores of Gaussian classes: scores[b, k] = log_prior[k] + sum_d log N(z[b, d]; means[k, d], exp(log_scales[k, d])^2).
//
// Centred differences, so that nothing is lost where |z| is far above |z - mean|; one partial sum a chunk of features.
// Moves (B D + 2 K D) elements in and B K out, 4 operations an element of [B, K, D]. At K = 10, float32, an H100 is bound
// by its bandwidth: 0.5 us at 3.35 TB/s for B = 512, D = 784, below the cost of a launch. Not yet timed on a device.

#include "cuda/stream.h"
#include "gaussian_class_scores.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace fastflow {
namespace {

using torch::stable::Tensor;

template <class T>
__global__ void __launch_bounds__(gaussian::tile_threads) gaussian_class_scores_kernel(const gaussian::Problem<T> p) {
  __shared__ gaussian::Tile<T> tile;
  const int64_t first_row = int64_t(blockIdx.x) * gaussian::tile_rows;
  const int64_t first_class = int64_t(blockIdx.y) * gaussian::tile_classes;
  const int row = threadIdx.x % gaussian::tile_rows;
  const int klass = threadIdx.x / gaussian::tile_rows;
  T energy = 0;
  for (int64_t feature = 0; feature < p.features; feature += gaussian::chunk) {
    tile.load(p, first_row, first_class, feature, threadIdx.x);
    __syncthreads();
    energy += tile.energy(row, klass);
    __syncthreads();
  }
  const int64_t b = first_row + row, k = first_class + klass;
  if (b < p.rows && k < p.classes) p.scores[b * p.classes + k] = p.score(k, energy);
}

template <class T>
void launch(const Tensor& z, const Tensor& means, const Tensor& log_scales, const Tensor& log_prior, Tensor& scores) {
  constexpr double half_log_two_pi = 0.91893853320467274178;
  gaussian::Problem<T> p;
  p.z = static_cast<const T*>(z.const_data_ptr());
  p.means = static_cast<const T*>(means.const_data_ptr());
  p.log_scales = static_cast<const T*>(log_scales.const_data_ptr());
  p.log_prior = static_cast<const T*>(log_prior.const_data_ptr());
  p.scores = static_cast<T*>(scores.mutable_data_ptr());
  p.rows = z.size(0), p.classes = means.size(0), p.features = z.size(1);
  p.z_row = z.stride(0), p.z_feature = z.stride(1);
  p.mean_class = means.stride(0), p.mean_feature = means.stride(1);
  p.scale_class = log_scales.stride(0), p.scale_feature = log_scales.stride(1);
  p.prior_class = log_prior.stride(0);
  p.constant = T(-half_log_two_pi * double(p.features));
  const dim3 grid(unsigned((p.rows + gaussian::tile_rows - 1) / gaussian::tile_rows),
                  unsigned((p.classes + gaussian::tile_classes - 1) / gaussian::tile_classes));
  gaussian_class_scores_kernel<T><<<grid, gaussian::tile_threads, 0, current_stream(z)>>>(p);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "gaussian_class_scores: ", cudaGetErrorString(error));
}

// z [B, D], means and log_scales [K, D], log_prior [K], one dtype, float32 or float64, any strides -> [B, K].
Tensor gaussian_class_scores(const Tensor& z, const Tensor& means, const Tensor& log_scales, const Tensor& log_prior) {
  Tensor scores = torch::stable::new_empty(z, {z.size(0), means.size(0)});
  if (scores.numel() == 0) return scores;
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  if (z.scalar_type() == torch::headeronly::ScalarType::Double) {
    launch<double>(z, means, log_scales, log_prior, scores);
  } else {
    launch<float>(z, means, log_scales, log_prior, scores);
  }
  return scores;
}

}  // namespace
}  // namespace fastflow

// Not under fastflow::, whose CUDA key belongs to the Python that weighs whether this kernel is proved. The schema is in
// fastflow/ops.
STABLE_TORCH_LIBRARY_IMPL(fastflow_cuda, CUDA, m) {
  m.impl("gaussian_class_scores", TORCH_BOX(&fastflow::gaussian_class_scores));
}

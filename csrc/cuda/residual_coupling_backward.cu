// Backward of residual_coupling from its output: a chunk of results at a time, one kernel computes the conditioner of a
// tile again, inverts the coupling and goes back through the layers, and others make the gradients of the weights from
// the inputs and deltas that it leaves, in the weights' type.
//
// A pair costs three times the forward's flops and, in the kernel of the tile, twice; its workspace is (4 R + 3) 256 +
// 2 A + P elements (R = 4, A = P = 98: 10.4 kB of bf16, 21 kB of float32), at most 256 MB for a chunk. The products
// delta^T inputs are ours and not cuBLAS's: their sums over 1024 rows at a time fill a device, are added in one order,
// and need no word about determinism from outside. They move each input and delta twice (tiles of 128 x 128 of 256 x
// 256): 64 flops a byte. Not yet timed on a device.

#include "cuda/residual_coupling.h"

namespace fastflow::residual_coupling {
namespace {

template <class Shape>
__global__ void __launch_bounds__(threads, 1) residual_coupling_backward_kernel(const __grid_constant__ Problem p) {
  Tile<Shape, TensorCoreBlock, true>({}, p, shared_memory).backward();
}

template <class Element>
__global__ void __launch_bounds__(threads, sizeof(Element) == 2 ? 2 : 1)
    residual_coupling_products_kernel(const __grid_constant__ Jobs<ProductJob> jobs) {
  outer_product<Element>(TensorCoreBlock(), jobs, shared_memory);
}

template <class Element>
__global__ void __launch_bounds__(threads)
    residual_coupling_column_sums_kernel(const __grid_constant__ Jobs<SumJob> jobs) {
  __shared__ float sums[threads];
  column_sum<Element>(TensorCoreBlock(), jobs, sums);
}

template <class Element>
__global__ void __launch_bounds__(threads) residual_coupling_class_sums_kernel(const __grid_constant__ TableProblem p) {
  __shared__ __align__(8) float sums[2 * threads];
  class_sum<Element>(TensorCoreBlock(), p, sums);
}

__global__ void __launch_bounds__(threads)
    residual_coupling_reduce_kernel(const __grid_constant__ Jobs<ReduceJob> jobs) {
  reduce_splits(TensorCoreBlock(), jobs);
}

struct BackwardLaunch : DeviceLaunch {
  using DeviceLaunch::DeviceLaunch;

  template <class Shape>
  void backward(const Problem& p, int64_t blocks) const {
    run(residual_coupling_backward_kernel<Shape>, grid(blocks), Shape::shared_bytes, p);
  }
  template <class Element>
  void outer(const Jobs<ProductJob>& jobs, int64_t tiles, int count, int splits) const {
    run(residual_coupling_products_kernel<Element>, grid(tiles, count, splits),
        OuterProduct<Element, TensorCoreBlock>::shared_bytes, jobs);
  }
  template <class Element>
  void column_sum(const Jobs<SumJob>& jobs, int64_t blocks, int count, int splits) const {
    run(residual_coupling_column_sums_kernel<Element>, grid(blocks, count, splits), 0, jobs);
  }
  template <class Element>
  void class_sum(const TableProblem& p, int64_t classes, int columns) const {
    run(residual_coupling_class_sums_kernel<Element>, grid(classes, columns), 0, p);
  }
  void reduce(const Jobs<ReduceJob>& jobs, int64_t blocks, int count) const {
    run(residual_coupling_reduce_kernel, grid(blocks, count), 0, jobs);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> backward(
    const Tensor& passive, const Tensor& z, const Tensor& table, std::vector<Tensor> weights,
    std::optional<Tensor> pairs, bool passive_shared, int64_t kind, double bias, double eps, double clamp,
    bool shift_first, const Tensor& grad_z, const Tensor& grad_log_det) {
  const torch::stable::accelerator::DeviceGuard guard(passive.get_device_index());
  if (pairs) pairs = torch::stable::contiguous(*pairs);
  const int64_t count = z.size(0), width = z.size(1);
  const ScaleMap map = {int(kind), float(bias), float(eps), float(clamp), shift_first};
  Problem p = describe(passive, width, table, weights, pairs, passive_shared, map, count);
  Tensor active = new_floats(z, {count, width}), grad_active = new_floats(z, {count, width});
  Tensor grad_passive = new_floats(z, {count, passive.size(1)});
  Tensor grad_table = new_floats(z, {table.size(0), table.size(1)});
  std::vector<Tensor> grads;
  std::vector<float*> to;
  for (const Tensor& weight : weights) {
    grads.push_back(torch::stable::new_empty(z, weight.sizes()));
    to.push_back(floats(grads.back()));
  }
  if (count == 0) {
    torch::stable::zero_(grad_table);
    for (Tensor& grad : grads) torch::stable::zero_(grad);
    return {active, grad_active, grad_passive, grad_table, grads};
  }
  p.given_z = view(z), p.grad_z = view(grad_z), p.grad_log_det = view(grad_log_det);
  p.active_out = floats(active), p.grad_active = floats(grad_active), p.grad_passive = floats(grad_passive);
  BackwardLaunch launch(passive);
  with_plan(launch, p, weights, [&](auto plan) { plan.backward(floats(grad_table), to.data()); });
  return {active, grad_active, grad_passive, grad_table, grads};
}

}  // namespace
}  // namespace fastflow::residual_coupling

// Not under fastflow::, as in gaussian_class_scores.cu.
STABLE_TORCH_LIBRARY_IMPL(fastflow_cuda, CUDA, m) {
  m.impl("residual_coupling_backward", TORCH_BOX(&fastflow::residual_coupling::backward));
}

// Forward of an affine coupling with its residual MLP, for all pairs (row, class): one kernel a half-step, after one
// that packs the weights and, where the rows are shared, one that multiplies the first layer once a row.
//
// A pair costs 2 (P H + 2 R H^2 + 2 A H) flops and moves 4 (P + 2 A + 1) bytes: at H = 256, R = 4, P = A = 98 that is
// 1.2 Mflop on 1.2 kB, compute-bound: B = 256, K = 10 has a floor of 3.1 us of bf16 (16 times that for SCNF's head: 50
// us) at 990 Tflop/s, and of 19 us in float32 (three products of tf32 at 495 Tflop/s).
//
// A block owns 96 results (bf16), 64 (float32): the residual stream is in its registers as float32, the inputs of the
// present layer in shared memory, the sums of a block's second layer go onto the stream. The weights pass through
// shared memory in slices of 16 KB, three in flight, from the L2 cache, which holds all of them: 96 rows take 96 flops
// from each byte, so that 5.7 TB/s of L2, an estimate for an H100, feed 547 Tflop/s, where mma.sync reaches about 60 %
// of the 990: the two limits are close. A warp reads 3.5 KB of shared memory for its 24 instructions of a k-step: 1.2
// of the 1.6 clocks that they take. wgmma would take its operands from shared memory, without these reads, at the full
// rate, but is then bound by L2 at 547 Tflop/s unless two blocks of a cluster share each slice; with 192 rows a cluster
// it may gain at most 1.6x, on sm_90a only. mma.sync serves every device from sm_80 on with one code, which a host can
// run, and comes first. CUTLASS's headers know neither the residual stream in registers nor a ring that outlives a
// layer.
//
// float32 weights: each operand is two tf32 of 11 bits, three products, and the sum of each eight terms is added in
// float32, not on the tensor core, which rounds toward zero: then the error is that of a float32 product, 0.7 to 1.7
// times it in the model of tests/test_residual_coupling_cuda_code.py, and else 7 to 90 times. Not yet timed on a
// device.

#include "cuda/residual_coupling.h"

namespace fastflow::residual_coupling {
namespace {

template <class Shape>
__global__ void __launch_bounds__(threads, 1)
    residual_coupling_first_layer_kernel(const __grid_constant__ Problem p, float* to) {
  Tile<Shape, TensorCoreBlock, false>({}, p, shared_memory).first_layer(to);
}

template <class Shape>
__global__ void __launch_bounds__(threads, 1) residual_coupling_kernel(const __grid_constant__ Problem p) {
  Tile<Shape, TensorCoreBlock, false>({}, p, shared_memory).forward();
}

struct ForwardLaunch : DeviceLaunch {
  using DeviceLaunch::DeviceLaunch;

  template <class Shape>
  void first_layer(const Problem& p, float* to, int64_t blocks) const {
    run(residual_coupling_first_layer_kernel<Shape>, grid(blocks), Shape::shared_bytes, p, to);
  }
  template <class Shape>
  void forward(const Problem& p, int64_t blocks) const {
    run(residual_coupling_kernel<Shape>, grid(blocks), Shape::shared_bytes, p);
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& passive, const Tensor& active, std::optional<Tensor> log_det,
                                   const Tensor& table, std::vector<Tensor> weights, std::optional<Tensor> pairs,
                                   bool passive_shared, bool active_shared, int64_t kind, double bias, double eps,
                                   double clamp, bool shift_first) {
  const torch::stable::accelerator::DeviceGuard guard(passive.get_device_index());
  if (pairs) pairs = torch::stable::contiguous(*pairs);
  const int64_t count = pairs ? pairs->size(0) : passive.size(0) * (passive_shared ? table.size(0) : 1);
  const ScaleMap map = {int(kind), float(bias), float(eps), float(clamp), shift_first};
  Problem p = describe(passive, active.size(1), table, weights, pairs, passive_shared, map, count);
  Tensor z = new_floats(active, {count, active.size(1)}), log_det_out = new_floats(active, {count});
  if (count == 0) return {z, log_det_out};
  p.active_shared = active_shared, p.active = view(active);
  if (log_det) p.log_det = view(*log_det);
  p.z = floats(z), p.log_det_out = floats(log_det_out);
  ForwardLaunch launch(passive);
  with_plan(launch, p, weights, [&](auto plan) { plan.forward(passive.size(0)); });
  return {z, log_det_out};
}

}  // namespace
}  // namespace fastflow::residual_coupling

// Not under fastflow::, as in gaussian_class_scores.cu.
STABLE_TORCH_LIBRARY_IMPL(fastflow_cuda, CUDA, m) {
  m.impl("residual_coupling", TORCH_BOX(&fastflow::residual_coupling::forward));
}

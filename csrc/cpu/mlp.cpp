// mlp and its backward for dispatch key CPU.
//
// Computed for a row, with M weights: M multiply-adds forward, 2 M backward; one Zen 4 core does 16 in a cycle in float.
// Moved beyond the L2: the weights, packed in each call, and a row's x, activations and outputs once forward, twice
// backward. So the multiply-adds decide; `python benchmarks/mlp.py` shows how near to their rate it comes.
//
// Scratch: the packed weights; forward without gradients a tile's activations for each thread; backward the gradients of a
// chunk's activations, half of `chunk_bytes` or those of 112 rows, whatever the number of rows.
#include "mlp.h"

#include <torch/headeronly/util/Exception.h>

#include <cstring>
#include <tuple>
#include <vector>

#include "linear_tensors.h"

namespace fastflow {
namespace {

constexpr int64_t chunk_bytes = int64_t{1} << 19;  // of activations and their gradients, which stay in the L2

// A call: what its kernels are given, and the memory that they share. `step` is 2 where the weights' biases lie between
// them.
class Call {
 public:
  Call(const Tensor& x, const std::vector<Tensor>& parameters, int64_t step, double slope, bool for_backward, bool of_x)
      : layers_(parameters.size() / step) {
    op.in_double = dtype_of(x) == float64;
    op.slope = slope;
    op.rows = x.size(0);
    op.x = rows_of(x);
    op.layers = static_cast<int>(layers_.size());
    op.layer = layers_.data();
    op.hidden_pitch = 0;
    for (const Tensor& each : parameters) {
      STD_TORCH_CHECK(dtype_of(each) == dtype_of(x), "mlp: a parameter has another dtype than x");
    }
    for (int n = 0; n < op.layers; ++n) {
      Linear& layer = layers_[n];
      const Tensor& weight = parameters[n * step];
      layer.weight = matrix(weight);
      layer.in = features(1, weight.size(1));
      layer.out = features(1, weight.size(0));
      const int64_t bytes = places(layer.in) * places(layer.out) * number_bytes();
      if (for_backward) {
        if (n > 0 || of_x) scratch_.ask(layer.transposed, bytes);
      } else {
        scratch_.ask(layer.packed, bytes);
        scratch_.ask(layer.bias, places(layer.out) * number_bytes());
      }
      if (n < op.layers - 1) op.hidden_pitch += places(layer.out);
    }
    scratch_.allocate();
    for (int n = 0; n < op.layers && !for_backward; ++n) {
      pad(layers_[n].bias, parameters[n * step + 1], layers_[n].out, number_bytes());
    }
    const auto kernel = FASTFLOW_KERNEL(mlp_pack);
    torch::stable::parallel_for(0, packing_units(layers_), 8,
                                [&](int64_t first, int64_t end) { kernel(op, first, end); });
  }
  Call(const Call&) = delete;  // its memory knows where it is

  int64_t number_bytes() const { return op.in_double ? 8 : 4; }

  // Rows that are worth a thread's start.
  int64_t rows_a_thread() const {
    int64_t products = 1;
    for (const Linear& layer : layers_) products += layer.in.size * layer.out.size;
    return 1 + (int64_t{1} << 20) / products;
  }

  static Operand rows_of(const Tensor& x) {
    return {static_cast<char*>(x.data_ptr()), dtype_of(x), x.stride(0), {1}};
  }

  Mlp op = {};

 private:
  std::vector<Linear> layers_;
  Scratch scratch_;
};

std::tuple<Tensor, Tensor> forward(const Tensor& x, std::vector<Tensor> parameters, double slope, bool keep) {
  const Tensor rows = with_dense_rows(x);
  Call call(rows, parameters, 2, slope, false, false);
  Mlp& op = call.op;
  const int32_t dtype = native_dtype(x);
  Tensor out = allocate({op.rows, parameters.back().size(0)}, dtype);
  Tensor hidden = allocate({keep ? op.rows : 0, op.hidden_pitch}, dtype);
  if (op.rows == 0) return {out, hidden};
  op.out = out.data_ptr();
  op.keeps_hidden = keep;
  op.hidden = static_cast<char*>(hidden.data_ptr());
  const auto kernel = FASTFLOW_KERNEL(mlp);
  torch::stable::parallel_for(0, op.rows, call.rows_a_thread(), [&](int64_t first, int64_t last) {
    Scratch scratch;
    Mlp own = op;
    if (!keep) {
      scratch.ask(own.hidden, tile_rows * op.hidden_pitch * call.number_bytes());
      scratch.allocate();
    }
    kernel(own, first, last);
  });
  return {out, hidden};
}

std::tuple<Tensor, std::vector<Tensor>> backward(const Tensor& grad, const Tensor& x, const Tensor& hidden,
                                                 std::vector<Tensor> weights, double slope, bool of_x) {
  const Tensor rows = with_dense_rows(x), dense_grad = with_dense_rows(grad);
  Call call(rows, weights, 1, slope, true, of_x);
  Mlp& op = call.op;
  const int32_t dtype = native_dtype(x);
  Tensor grad_x = allocate({of_x ? op.rows : 0, x.size(1)}, dtype);
  std::vector<Tensor> grads;
  for (int n = 0; n < op.layers; ++n) {
    grads.push_back(allocate(weights[n].sizes(), dtype));
    grads.push_back(allocate(weights[n].sizes().slice(0, 1), dtype));
    op.layer[n].grad = grads[2 * n].data_ptr();
    op.layer[n].grad_bias = grads[2 * n + 1].data_ptr();
  }
  for (Tensor& each : grads) std::memset(each.data_ptr(), 0, each.numel() * call.number_bytes());
  if (op.rows == 0) return {grad_x, grads};
  op.grad_out = Call::rows_of(dense_grad);
  op.grad_x = of_x ? grad_x.data_ptr() : nullptr;
  op.hidden = static_cast<char*>(hidden.data_ptr());
  const int64_t x_pitch = row_pitch(op.layer[0].in);
  const int64_t capacity =
      std::min(op.rows, std::max<int64_t>(tile_rows, chunk_bytes / (2 * (op.hidden_pitch + x_pitch) * call.number_bytes())));
  Scratch scratch;
  scratch.ask(op.grad_hidden, capacity * op.hidden_pitch * call.number_bytes());
  if (x.size(1) % 32 != 0) scratch.ask(op.padded_x, capacity * x_pitch * call.number_bytes());
  scratch.allocate();
  int64_t units = 0;
  for (int n = 0; n < op.layers; ++n) units += places(op.layer[n].in) / 32;
  const auto kernel = FASTFLOW_KERNEL(mlp_backward);
  const auto weights_kernel = FASTFLOW_KERNEL(mlp_weights);
  // The chunks are the same whatever the number of threads, and so are the sums.
  for (op.chunk_first = 0; op.chunk_first < op.rows; op.chunk_first += capacity) {
    op.chunk_rows = std::min(capacity, op.rows - op.chunk_first);
    torch::stable::parallel_for(op.chunk_first, op.chunk_first + op.chunk_rows, call.rows_a_thread(),
                                [&](int64_t first, int64_t last) { kernel(op, first, last); });
    torch::stable::parallel_for(0, units, 1 + call.rows_a_thread() * units / op.chunk_rows,
                                [&](int64_t first, int64_t last) { weights_kernel(op, first, last); });
  }
  return {grad_x, grads};
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("mlp", TORCH_BOX(&fastflow::forward));
  library.impl("mlp_backward", TORCH_BOX(&fastflow::backward));
}

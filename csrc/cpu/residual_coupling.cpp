// residual_coupling and its backward for dispatch key CPU.
//
// Computed for a result, with H hidden features, R blocks, P passive and A active ones: M = 2 R H^2 + 2 A H multiply-
// adds forward, and P H for each row of `passive`; three times as many backward, where forward is computed again on top
// of the two products of a gradient. One Zen 4 core does 16 in a cycle in float, 32 of bfloat16 (vdpbf16ps). Moved
// beyond the L2: for a tile of 112 results the weights, packed in each call (4 M bytes, 8 M backward), and 4 (P + 2 A)
// bytes a result. So the multiply-adds decide: at H = 256, R = 4, P = A = 98 the floor is 10 us a result and core, 5 us
// in bfloat16. `python benchmarks/flow_head.py` measures the head that is made of it.
//
// Scratch: the packed weights; forward a tile's activations for each thread, 0.6 MB at H = 256; backward `chunk_bytes`
// of activations and gradients, whatever the number of results.
#include "residual_coupling.h"

#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#include "linear_tensors.h"
#include "scratch.h"
#include "tensors.h"

namespace fastflow {
namespace {

constexpr int64_t chunk_bytes = int64_t{16} << 20;  // of activations that backward holds

Products products_of(const Tensor& table, const Tensor& weight) {
  const Dtype state = dtype_of(table), stored = dtype_of(weight);
  STD_TORCH_CHECK(stored == state || (stored == bfloat16 && state == float32),
                  "residual_coupling: the weights' matrices have another dtype than table and are not bfloat16 beside "
                  "float32");
  if (state == float64) return Products::in_double;
  if (stored == float32) return Products::in_float;
  return multiplies_bfloat16() ? Products::in_bfloat16 : Products::of_bfloat16_in_float;
}

// A call: what its kernels are given, and the memory that they share.
class Call {
 public:
  Call(const Tensor& passive, const Tensor& active, const Tensor& table, const std::vector<Tensor>& weights,
       const std::optional<Tensor>& pairs, bool passive_shared, bool active_shared, int64_t kind, double bias,
       double eps, double clamp, bool shift_first, bool for_backward)
      : table_(torch::stable::contiguous(table)), layers_((weights.size() - 5) / 2 + 2) {
    op.products = products_of(table, weights[0]);
    op.kind = static_cast<int>(kind);
    op.bias = bias;
    op.eps = eps;
    op.clamp = clamp;
    op.shift_first = shift_first;
    op.passive_shared = passive_shared;
    op.active_shared = active_shared;
    op.classes = table.size(0);
    op.rows = pairs ? pairs->size(0) : passive.size(0) * (passive_shared ? op.classes : 1);
    if (pairs) {
      op.pairs = static_cast<const int64_t*>(pairs->data_ptr());
      op.pairs_stride = pairs->stride(0);
    }
    op.passive = matrix(passive);
    op.active = matrix(active);
    op.table = table_.data_ptr();
    op.layers = static_cast<int>(layers_.size());
    op.layer = layers_.data();
    const int last = op.layers - 1;
    const Features hidden = features(1, table.size(1));
    for (int n = 0; n <= last; ++n) {
      Linear& layer = layers_[n];
      layer.weight = matrix(weights[weight_index(n)]);
      layer.in = n == 0 ? features(1, passive.size(1)) : hidden;
      layer.out = n == last ? features(2, active.size(1)) : hidden;
      const int64_t entries = places(layer.in) * places(layer.out);
      scratch_.ask(layer.packed, entries * input_bytes());
      if (for_backward) scratch_.ask(layer.transposed, entries * input_bytes());
      if (n > 0) scratch_.ask(layer.bias, places(layer.out) * number_bytes());
    }
    scratch_.ask(op.norm_shift, places(hidden) * number_bytes());
    scratch_.ask(op.norm_scale, places(hidden) * number_bytes());
    scratch_.allocate();
    for (int n = 1; n <= last; ++n) pad(layers_[n].bias, weights[weight_index(n) + 1], layers_[n].out, number_bytes());
    pad(op.norm_shift, weights[weights.size() - 4], hidden, number_bytes());
    pad(op.norm_scale, weights[weights.size() - 3], hidden, number_bytes());
    pack();
  }
  Call(const Call&) = delete;  // its memory knows where it is

  // Of the weights' matrix of a layer; its bias comes after it.
  int64_t weight_index(int layer) const { return layer == 0 ? 0 : 2 * layer - 1 + (layer == op.layers - 1 ? 2 : 0); }

  int64_t number_bytes() const { return op.products == Products::in_double ? 8 : 4; }
  int64_t input_bytes() const { return op.products == Products::in_bfloat16 ? 2 : number_bytes(); }

  // Rows that are worth a thread's start.
  int64_t rows_a_thread() const {
    int64_t products = 1;
    for (const Linear& layer : layers_) products += layer.in.size * layer.out.parts * layer.out.size;
    return 1 + (int64_t{1} << 20) / products;
  }

  // A thread's memory for a tile.
  void ask_for_tile(ResidualCoupling& own, Scratch& scratch) const {
    const Features &in = op.layer[0].in, &hidden = op.layer[0].out, &out = op.layer[op.layers - 1].out;
    scratch.ask(own.distinct, tile_rows * row_pitch(in) * input_bytes());
    scratch.ask(own.h, tile_rows * row_pitch(hidden) * number_bytes());
    scratch.ask(own.made, tile_rows * std::max(row_pitch(hidden), row_pitch(out)) * number_bytes());
    scratch.ask(own.line, std::max(2 * out.pitch, places(in)) * number_bytes());
  }

  void ask_for_hidden(Activations& all, Scratch& scratch, int64_t capacity, int count) const {
    all.capacity = capacity;
    all.hidden_count = count;
    scratch.ask(all.hidden, count * capacity * row_pitch(op.layer[0].out) * input_bytes());
  }

  void ask_for_all(Activations& all, Scratch& scratch, int64_t capacity) const {
    ask_for_hidden(all, scratch, capacity, op.layers - 1);
    scratch.ask(all.grad_hidden, all.hidden_count * capacity * row_pitch(op.layer[0].out) * input_bytes());
    scratch.ask(all.x, capacity * row_pitch(op.layer[0].in) * input_bytes());
    scratch.ask(all.grad_last, capacity * row_pitch(op.layer[op.layers - 1].out) * input_bytes());
  }

  ResidualCoupling op = {};

 private:
  void pack() {
    const auto kernel = FASTFLOW_KERNEL(residual_coupling_pack);
    torch::stable::parallel_for(0, packing_units(layers_), 8,
                                [&](int64_t first, int64_t end) { kernel(op, first, end); });
  }

  Tensor table_;
  std::vector<Linear> layers_;
  Scratch scratch_;
};

std::tuple<Tensor, Tensor> forward(const Tensor& passive, const Tensor& active, std::optional<Tensor> log_det,
                                   const Tensor& table, std::vector<Tensor> weights, std::optional<Tensor> pairs,
                                   bool passive_shared, bool active_shared, int64_t kind, double bias, double eps,
                                   double clamp, bool shift_first) {
  Call call(passive, active, table, weights, pairs, passive_shared, active_shared, kind, bias, eps, clamp,
            shift_first, false);
  ResidualCoupling& op = call.op;
  const int32_t dtype = native_dtype(table);
  Tensor z = allocate({op.rows, active.size(1)}, dtype), total = allocate({op.rows}, dtype);
  if (op.rows == 0) return {z, total};
  op.z = z.data_ptr();
  op.log_det_out = total.data_ptr();
  if (log_det) {
    op.log_det = log_det->data_ptr();
    op.log_det_stride = log_det->stride(0);
  }
  const auto kernel = FASTFLOW_KERNEL(residual_coupling);
  torch::stable::parallel_for(0, op.rows, call.rows_a_thread(), [&](int64_t first, int64_t last) {
    Scratch scratch;
    ResidualCoupling own = op;
    call.ask_for_tile(own, scratch);
    call.ask_for_hidden(own.tile, scratch, tile_rows, 2);
    scratch.allocate();
    kernel(own, first, last);
  });
  return {z, total};
}

// In chunks of results: first their activations and the gradients of those, then their part of the weights' gradients.
// The chunks are the same whatever the number of threads, and so are the sums.
void over_chunks(Call& call) {
  ResidualCoupling& op = call.op;
  int64_t row_bytes = 0, units = 0;
  for (int n = 0; n < op.layers; ++n) {
    const Linear& layer = op.layer[n];
    row_bytes += (row_pitch(layer.in) + row_pitch(layer.out)) * call.input_bytes();
    units += places(layer.in) / 32;
  }
  const int64_t tiles = std::max<int64_t>(1, chunk_bytes / (row_bytes * tile_rows));
  const int64_t capacity = std::min(tiles * tile_rows, round_up(op.rows, 2));
  Scratch scratch;
  call.ask_for_all(op.chunk, scratch, capacity);
  scratch.allocate();
  const auto kernel = FASTFLOW_KERNEL(residual_coupling_backward);
  const auto weights_kernel = FASTFLOW_KERNEL(residual_coupling_weights);
  for (op.chunk_first = 0; op.chunk_first < op.rows; op.chunk_first += capacity) {
    op.chunk_rows = std::min(capacity, op.rows - op.chunk_first);
    const int64_t end = op.chunk_first + op.chunk_rows;
    // By two rows, which bfloat16 products take together.
    torch::stable::parallel_for(0, (op.chunk_rows + 1) / 2, call.rows_a_thread(), [&](int64_t first, int64_t last) {
      Scratch of_thread;
      ResidualCoupling own = op;
      own.tile = op.chunk;
      call.ask_for_tile(own, of_thread);
      if (op.products == Products::in_bfloat16) call.ask_for_all(own.tile, of_thread, tile_rows);
      of_thread.allocate();
      kernel(own, op.chunk_first + 2 * first, std::min(op.chunk_first + 2 * last, end));
    });
    torch::stable::parallel_for(0, units, 1 + call.rows_a_thread() * units / op.chunk_rows,
                                [&](int64_t first, int64_t last) { weights_kernel(op, first, last); });
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> backward(
    const Tensor& passive, const Tensor& z, const Tensor& table, std::vector<Tensor> weights,
    std::optional<Tensor> pairs, bool passive_shared, int64_t kind, double bias, double eps, double clamp,
    bool shift_first, const Tensor& grad_z, const Tensor& grad_log_det) {
  Call call(passive, z, table, weights, pairs, passive_shared, false, kind, bias, eps, clamp, shift_first, true);
  ResidualCoupling& op = call.op;
  const int32_t dtype = native_dtype(table);
  Tensor active = allocate(z.sizes(), dtype), grad_active = allocate(z.sizes(), dtype);
  Tensor grad_passive = allocate({z.size(0), passive.size(1)}, dtype);
  Tensor grad_table = allocate(table.sizes(), dtype);
  torch::stable::zero_(grad_table);
  std::vector<Tensor> grads;
  for (const Tensor& weight : weights) {
    grads.push_back(allocate(weight.sizes(), dtype));
    torch::stable::zero_(grads.back());
  }
  if (op.rows > 0) {
    op.grad_z = matrix(grad_z);
    op.log_det = grad_log_det.data_ptr();
    op.log_det_stride = grad_log_det.stride(0);
    op.active_out = active.data_ptr();
    op.grad_active = grad_active.data_ptr();
    op.grad_passive = grad_passive.data_ptr();
    op.grad_table = grad_table.data_ptr();
    op.grad_norm_shift = grads[grads.size() - 4].data_ptr();
    op.grad_norm_scale = grads[grads.size() - 3].data_ptr();
    for (int n = 0; n < op.layers; ++n) {
      op.layer[n].grad = grads[call.weight_index(n)].data_ptr();
      if (n > 0) op.layer[n].grad_bias = grads[call.weight_index(n) + 1].data_ptr();
    }
    over_chunks(call);
  }
  return {active, grad_active, grad_passive, grad_table, grads};
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("residual_coupling", TORCH_BOX(&fastflow::forward));
  library.impl("residual_coupling_backward", TORCH_BOX(&fastflow::backward));
}

// The backward of residual_coupling for one instruction set; see csrc/cpu/residual_coupling.cpp for what it costs.
#include "cpu/residual_coupling.h"

#include "blocks.h"
#include "residual_mlp.h"
#include "scale_maps.h"
#include "weight_gradients.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

// active and grad_active, and the gradient of [s | t].
template <class P, class Map>
void couple_back(const ResidualCoupling& op, const Results& results, const ResidualMlp<P>& mlp) {
  using T = typename P::T;
  const Settings<T> k = settings<T>(op.kind, op.bias, op.eps, op.clamp);
  const Features& out = mlp.last().out;
  const int64_t size = out.size;
  const auto* const grad_log_det = static_cast<const T*>(op.log_det);
  for (int64_t r = 0; r < results.rows; ++r) {
    const int64_t result = results.first + r;
    const T* const z_row = dense_row<T>(op.active, result, size, op.line);
    const T* const grad_row = dense_row<T>(op.grad_z, result, size, reinterpret_cast<T*>(op.line) + out.pitch);
    const T *const scale = mlp.made(r), *const shift = scale + out.pitch;
    auto* const grad = mlp.grad(op.layers - 1) + r * row_pitch(out);
    T* const active = static_cast<T*>(op.active_out) + result * size;
    T* const grad_active = static_cast<T*>(op.grad_active) + result * size;
    const T h = grad_log_det[result * op.log_det_stride];
    for (int64_t i = 0; i < out.pitch; i += width<T>) {
      const SomeLanes<T> lanes(nullptr, i < size ? size - i : 0);
      const Vec<T> z = load_part(z_row + i, size - i), g = load_part(grad_row + i, size - i), t = load(shift + i);
      const ScaleTerms<T> terms = Map::template terms<false>(k, load(scale + i), Vec<T>{});
      const Vec<T> c = terms.multiplier, scaled = g * c;
      store_part(active + i, op.shift_first ? z / c - t : (z - t) / c, size - i);
      store_part(grad_active + i, scaled, size - i);
      const Vec<T> grad_log_c = g * (op.shift_first ? z : z - t) + h;
      P::write(grad + i, lanes.active(grad_log_c * terms.slope, Vec<T>{}));
      P::write(grad + out.pitch + i, lanes.active(op.shift_first ? scaled : g, Vec<T>{}));
    }
  }
}

// Rows [rows, pitch] as the products that sum over rows take them: where those take pairs, two rows' numbers in turn.
template <class Input>
void pair_rows(const char* from, char* to, int64_t rows, int64_t first, int64_t pitch) {
  const auto* in = reinterpret_cast<const Input*>(from);
  auto* out = reinterpret_cast<Input*>(to) + first * pitch;
  for (int64_t r = 0; r < rows; r += 2, in += 2 * pitch, out += 2 * pitch) {
    const bool alone = r + 1 == rows;
    for (int64_t i = 0; i < pitch; ++i) {
      out[2 * i] = in[i];
      out[2 * i + 1] = alone ? Input{} : in[pitch + i];
    }
  }
}

template <class P>
void publish(const ResidualCoupling& op, int64_t rows, int64_t first) {
  using Input = typename P::Input;
  const Activations &from = op.tile, &to = op.chunk;
  const int64_t pitch = row_pitch(op.layer[0].out), bytes = pitch * sizeof(Input);
  pair_rows<Input>(from.x, to.x, rows, first, row_pitch(op.layer[0].in));
  for (int n = 0; n < from.hidden_count; ++n) {
    const int64_t source = n * from.capacity * bytes, target = n * to.capacity * bytes;
    pair_rows<Input>(from.hidden + source, to.hidden + target, rows, first, pitch);
    pair_rows<Input>(from.grad_hidden + source, to.grad_hidden + target, rows, first, pitch);
  }
  pair_rows<Input>(from.grad_last, to.grad_last, rows, first, row_pitch(op.layer[op.layers - 1].out));
}

// The gradients of the weights: sums over the results of a chunk, added to those of the chunks before it.
template <class P>
class WeightGradients {
 public:
  using T = typename P::T;
  using Input = typename P::Input;

  explicit WeightGradients(const ResidualCoupling& op) : op_(op), folds_((op.chunk_rows + P::fold - 1) / P::fold) {}

  void run(int64_t unit) const {
    for (int layer = 0; layer < op_.layers; ++layer) {
      const int64_t units = places(op_.layer[layer].in) / 32;
      if (unit < units) {
        add_weight_gradient<P>(op_.layer[layer], input(layer), grad(layer), folds_, 32 * unit);
        if (unit == 0) add_vectors(layer);
        return;
      }
      unit -= units;
    }
  }

 private:
  Matrix<P> input(int layer) const {
    if (layer == 0) return matrix(op_.chunk.x, 0, op_.layer[0].in);
    return matrix(op_.chunk.hidden, layer - 1, op_.layer[layer].in);
  }
  Matrix<P> grad(int layer) const {
    if (layer == op_.layers - 1) return matrix(op_.chunk.grad_last, 0, op_.layer[layer].out);
    return matrix(op_.chunk.grad_hidden, layer, op_.layer[layer].out);
  }
  Matrix<P> matrix(const char* all, int index, const Features& features) const {
    const int64_t pitch = row_pitch(features);
    return {reinterpret_cast<const Input*>(all) + index * op_.chunk.capacity * pitch, pitch * P::fold, pitch};
  }

  void add_vectors(int layer) const {
    const Linear& each = op_.layer[layer];
    const Matrix<P> grads = grad(layer);
    if (layer == 0) add_table(grads, each.out.size);
    if (layer == op_.layers - 1) add_norm(input(layer), grad(layer - 1), each.in.size);
    if (each.grad_bias != nullptr) add_bias_gradient(each, grads, folds_);
  }

  void add_table(const Matrix<P>& grads, int64_t size) const {
    Vec<T> rows[P::fold];
    for (int64_t fold = 0; fold < folds_; ++fold) {
      for (int64_t i = 0; i < size; i += width<T>) {
        grads.read(fold, i, rows);
        for (int n = 0; n < P::fold && fold * P::fold + n < op_.chunk_rows; ++n) {
          const int64_t result = op_.chunk_first + fold * P::fold + n;
          const int64_t label = (op_.pairs == nullptr ? result : op_.pairs[result * op_.pairs_stride]) % op_.classes;
          add(static_cast<T*>(op_.grad_table) + label * size + i, rows[n], size - i);
        }
      }
    }
  }

  // Where the rectifier lets anything through its output is (h - shift) scale, and `grads` has a factor of the scale.
  void add_norm(const Matrix<P>& outputs, const Matrix<P>& grads, int64_t size) const {
    for (int64_t i = 0; i < size; i += width<T>) {
      const Vec<T> scale = load(reinterpret_cast<const T*>(op_.norm_scale) + i);
      const Vec<T> of_shift = column_sums(grads, folds_, i, [](int64_t, Vec<T> v, int) { return v; });
      const Vec<T> of_scale = column_sums(grads, folds_, i, [&](int64_t fold, Vec<T> v, int n) {
        Vec<T> rows[P::fold];
        outputs.read(fold, i, rows);
        return v * rows[n];
      });
      add(static_cast<T*>(op_.grad_norm_shift) + i, -of_shift, size - i);
      add(static_cast<T*>(op_.grad_norm_scale) + i, scale == 0 ? Vec<T>{} : of_scale / scale / scale, size - i);
    }
  }

  const ResidualCoupling& op_;
  const int64_t folds_;
};

}  // namespace

void residual_coupling_backward(const ResidualCoupling& op, int64_t first, int64_t last) {
  with_products(op, [&](auto products) {
    using P = decltype(products);
    const auto couple = with_scale_map(op.kind, op.eps, false, [](auto map) { return &couple_back<P, decltype(map)>; });
    in_tiles(first, last, [&](int64_t row, int64_t rows) {
      const int64_t place = row - op.chunk_first;
      const Results results(op, row, rows);
      const ResidualMlp<P> mlp(op, P::fold == 1 ? place : 0);
      mlp.forward(results);
      couple(op, results, mlp);
      mlp.backward(results);
      if constexpr (P::fold > 1) publish<P>(op, rows, place);
    });
  });
}

void residual_coupling_weights(const ResidualCoupling& op, int64_t first, int64_t last) {
  with_products(op, [&](auto products) {
    const WeightGradients<decltype(products)> gradients(op);
    for (int64_t unit = first; unit < last; ++unit) gradients.run(unit);
  });
}

}  // namespace fastflow::FASTFLOW_ISA

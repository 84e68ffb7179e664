// mlp and its backward for one instruction set; see csrc/cpu/mlp.cpp for what they cost.
#include "cpu/mlp.h"

#include "packing.h"
#include "weight_gradients.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

template <class T>
class Network {
  using P = InNumbers<T>;

 public:
  explicit Network(const Mlp& op) : op_(op), slope_(static_cast<T>(op.slope)) {}

  void forward(int64_t first, int64_t rows) const {
    Matrix<P> in = rows_of(op_.x, first, op_.layer[0].in);
    const int last = op_.layers - 1;
    const bool leaks = slope_ != 0;
    const T slope = slope_;
    int64_t place = 0;
    for (int n = 0; n < last; ++n) {
      const Linear& layer = op_.layer[n];
      T* const to = hidden(op_.keeps_hidden ? first : 0) + place;
      const T* const bias = reinterpret_cast<const T*>(layer.bias);
      const int64_t pitch = op_.hidden_pitch;
      multiply_rows<P>(rows, in.data, in.pitch, layer.packed, layer.in.size, places(layer.out),
                       [=](int64_t row, int64_t column, Vec<T> v) {
                         v += load(bias + column);
                         store(to + row * pitch + column, leaks ? (v > 0 ? v : v * slope) : at_least(T(0), v));
                       });
      in = {to, pitch, places(layer.out)};
      place += places(layer.out);
    }
    const Linear& layer = op_.layer[last];
    const int64_t size = layer.out.size;
    T* const to = static_cast<T*>(op_.out) + first * size;
    const T* const bias = reinterpret_cast<const T*>(layer.bias);
    multiply_rows<P>(rows, in.data, in.pitch, layer.packed, layer.in.size, places(layer.out),
                     [=](int64_t row, int64_t column, Vec<T> v) {
                       store_part(to + row * size + column, v + load(bias + column), size - column);
                     });
  }

  // The gradients of the hidden layers' outputs before the activation, and of x.
  void backward(int64_t first, int64_t rows) const {
    Matrix<P> grad = rows_of(op_.grad_out, first, op_.layer[op_.layers - 1].out);
    const int64_t of_chunk = first - op_.chunk_first, pitch = op_.hidden_pitch;
    const bool leaks = slope_ != 0;
    const T slope = slope_;
    int64_t place = 0;
    for (int n = 0; n < op_.layers - 1; ++n) place += places(op_.layer[n].out);
    for (int n = op_.layers - 1; n > 0; --n) {
      const Linear& layer = op_.layer[n];
      place -= places(layer.in);
      const T* const active = hidden(first) + place;
      T* const to = grad_hidden(of_chunk) + place;
      multiply_rows<P>(rows, grad.data, grad.pitch, layer.transposed, layer.out.size, places(layer.in),
                       [=](int64_t row, int64_t column, Vec<T> v) {
                         const int64_t at = row * pitch + column;
                         // Of a NaN ReLU passes the gradient, and LeakyReLU its slope times that, as in PyTorch.
                         const Vec<T> h = load(active + at);
                         store(to + at, leaks ? (h > 0 ? v : v * slope) : (h <= 0 ? Vec<T>{} : v));
                       });
      grad = {to, pitch, places(layer.in)};
    }
    const Linear& layer = op_.layer[0];
    const int64_t size = layer.in.size;
    if (op_.grad_x != nullptr) {
      T* const to = static_cast<T*>(op_.grad_x) + first * size;
      multiply_rows<P>(rows, grad.data, grad.pitch, layer.transposed, layer.out.size, places(layer.in),
                       [=](int64_t row, int64_t column, Vec<T> v) {
                         store_part(to + row * size + column, v, size - column);
                       });
    }
    if (op_.padded_x != nullptr) {
      const Matrix<P> x = rows_of(op_.x, first, layer.in);
      T* to = reinterpret_cast<T*>(op_.padded_x) + of_chunk * row_pitch(layer.in);
      for (int64_t row = 0; row < rows; ++row, to += row_pitch(layer.in)) {
        for (int64_t i = 0; i < places(layer.in); i += width<T>) {
          store(to + i, load_part(x.data + row * x.pitch + i, size - i));
        }
      }
    }
  }

  // One unit of the gradients of the weights, of the chunk's rows.
  void add_weights(int64_t unit) const {
    Matrix<P> inputs = rows_of(op_.x, op_.chunk_first, op_.layer[0].in);
    if (op_.padded_x != nullptr) {
      const int64_t pitch = row_pitch(op_.layer[0].in);
      inputs = {reinterpret_cast<const T*>(op_.padded_x), pitch, pitch};
    }
    const T *active = hidden(op_.chunk_first), *grad = grad_hidden(0);
    for (int n = 0; n < op_.layers; ++n) {
      const Linear& layer = op_.layer[n];
      const int64_t units = places(layer.in) / 32;
      if (unit < units) {
        const Matrix<P> grads = n == op_.layers - 1 ? rows_of(op_.grad_out, op_.chunk_first, layer.out)
                                                    : Matrix<P>{grad, op_.hidden_pitch, places(layer.out)};
        add_weight_gradient<P>(layer, inputs, grads, op_.chunk_rows, 32 * unit);
        if (unit == 0) add_bias_gradient(layer, grads, op_.chunk_rows);
        return;
      }
      unit -= units;
      inputs = {active, op_.hidden_pitch, places(layer.out)};
      active += places(layer.out);
      grad += places(layer.out);
    }
  }

 private:
  T* hidden(int64_t row) const { return reinterpret_cast<T*>(op_.hidden) + row * op_.hidden_pitch; }
  T* grad_hidden(int64_t row) const { return reinterpret_cast<T*>(op_.grad_hidden) + row * op_.hidden_pitch; }
  static Matrix<P> rows_of(const Operand& of, int64_t first, const Features& features) {
    return {reinterpret_cast<const T*>(of.data) + first * of.row_stride, of.row_stride, features.size};
  }

  const Mlp& op_;
  const T slope_;
};

template <class Run>
void with_network(const Mlp& op, Run run) {
  if (op.in_double) {
    run(Network<double>(op), InNumbers<double>{});
  } else {
    run(Network<float>(op), InNumbers<float>{});
  }
}

}  // namespace

void mlp_pack(const Mlp& op, int64_t first, int64_t last) {
  with_network(op, [&](auto, auto products) {
    for (int64_t unit = first; unit < last; ++unit) pack_unit<decltype(products)>(op.layer, op.layers, unit);
  });
}

void mlp(const Mlp& op, int64_t first, int64_t last) {
  with_network(op, [&](auto network, auto) {
    in_tiles(first, last, [&](int64_t row, int64_t rows) { network.forward(row, rows); });
  });
}

void mlp_backward(const Mlp& op, int64_t first, int64_t last) {
  with_network(op, [&](auto network, auto) {
    in_tiles(first, last, [&](int64_t row, int64_t rows) { network.backward(row, rows); });
  });
}

void mlp_weights(const Mlp& op, int64_t first, int64_t last) {
  with_network(op, [&](auto network, auto) {
    for (int64_t unit = first; unit < last; ++unit) network.add_weights(unit);
  });
}

}  // namespace fastflow::FASTFLOW_ISA

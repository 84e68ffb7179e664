// The conditioner of residual_coupling on a tile of rows.
#pragma once

#include "cpu/residual_coupling.h"

#include "packing.h"

namespace fastflow::FASTFLOW_ISA {

// The row of an operand that is dense: in place, or copied to `line`.
template <class T>
const T* dense_row(const Operand& operand, int64_t row, int64_t count, void* line) {
  const T* from = reinterpret_cast<const T*>(operand.data) + row * operand.row_stride;
  if (operand.stride[0] == 1) return from;
  T* to = static_cast<T*>(line);
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * operand.stride[0]];
  return to;
}

// Results first, first + 1, ... and the pairs that they are of.
struct Results {
  int64_t first, rows;
  int64_t row[tile_rows], label[tile_rows];

  Results(const ResidualCoupling& op, int64_t first, int64_t rows) : first(first), rows(rows) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t pair = op.pairs == nullptr ? first + r : op.pairs[(first + r) * op.pairs_stride];
      row[r] = pair / op.classes;
      label[r] = pair % op.classes;
    }
  }
};

template <class P>
class ResidualMlp {
 public:
  using T = typename P::T;
  using Input = typename P::Input;

  // `offset` is the place of the tile's first row in op.tile.
  ResidualMlp(const ResidualCoupling& op, int64_t offset)
      : op_(op), hidden_(op.layer[0].out), pitch_(row_pitch(hidden_)), columns_(places(hidden_)), offset_(offset),
        h_(reinterpret_cast<T*>(op.h)), made_(reinterpret_cast<T*>(op.made)), made_pitch_(row_pitch(last().out)) {}

  const Linear& last() const { return op_.layer[op_.layers - 1]; }
  Input* input(int layer) const {
    if (layer == 0) return reinterpret_cast<Input*>(op_.tile.x) + offset_ * row_pitch(op_.layer[0].in);
    return hidden(op_.tile.hidden, (layer - 1) % op_.tile.hidden_count);
  }
  // The gradient of a layer's output.
  Input* grad(int layer) const {
    if (layer < op_.layers - 1) return hidden(op_.tile.grad_hidden, layer);
    return reinterpret_cast<Input*>(op_.tile.grad_last) + offset_ * row_pitch(last().out);
  }
  // [s | t] of a row.
  const T* made(int64_t row) const { return made_ + row * made_pitch_; }

  void forward(const Results& results) const {
    first_layer(results);
    const int64_t rows = results.rows, pitch = pitch_;
    for (int layer = 1; layer < op_.layers - 1; layer += 2) {
      Input* const middle = input(layer + 1);
      const T *const first_bias = bias(layer), *const second_bias = bias(layer + 1), *const h = h_;
      const Keep keep = kept_for(layer + 2);
      multiply(layer, rows, [=](int64_t row, int64_t column, Vec<T> v) {
        P::write(middle + row * pitch + column, at_least(T(0), v + load(first_bias + column)));
      });
      multiply(layer + 1, rows, [=](int64_t row, int64_t column, Vec<T> v) {
        keep(row * pitch + column, column, load(h + row * pitch + column) + (v + load(second_bias + column)));
      });
    }
    T* const made = made_;
    const int64_t made_pitch = made_pitch_;
    const T* const last_bias = bias(op_.layers - 1);
    multiply(op_.layers - 1, rows, [=](int64_t row, int64_t column, Vec<T> v) {
      store(made + row * made_pitch + column, v + load(last_bias + column));
    });
  }

  // From the gradient of the last layer's output to those of the others', and the gradient of `passive`. Where h was is
  // its gradient, in full.
  void backward(const Results& results) const {
    const int64_t rows = results.rows, pitch = pitch_;
    const int norm = op_.layers - 1;
    T* const h = h_;
    const auto* const scale = reinterpret_cast<const T*>(op_.norm_scale);
    const Input* rectified = input(norm);
    Input* to = grad(norm - 1);
    multiply_back(norm, rows, [=](int64_t row, int64_t column, Vec<T> v) {
      const int64_t at = row * pitch + column;
      const Vec<T> g = where_positive(rectified + at, v * load(scale + column));
      store(h + at, g);
      P::write(to + at, g);
    });
    for (int layer = norm - 1; layer > 0; layer -= 2) {
      rectified = input(layer);
      to = grad(layer - 1);
      multiply_back(layer, rows, [=](int64_t row, int64_t column, Vec<T> v) {
        const int64_t at = row * pitch + column;
        P::write(to + at, where_positive(rectified + at, v));
      });
      rectified = input(layer - 1);
      to = grad(layer - 2);
      multiply_back(layer - 1, rows, [=](int64_t row, int64_t column, Vec<T> v) {
        const int64_t at = row * pitch + column;
        const Vec<T> g = load(h + at) + where_positive(rectified + at, v);
        store(h + at, g);
        P::write(to + at, g);
      });
    }
    const int64_t size = op_.layer[0].in.size;
    T* const grad_passive = static_cast<T*>(op_.grad_passive) + results.first * size;
    multiply_back(0, rows, [=](int64_t row, int64_t column, Vec<T> v) {
      store_part(grad_passive + row * size + column, v, size - column);
    });
  }

 private:
  Input* hidden(char* all, int index) const {
    return reinterpret_cast<Input*>(all) + (index * op_.tile.capacity + offset_) * pitch_;
  }
  const T* bias(int layer) const { return reinterpret_cast<const T*>(op_.layer[layer].bias); }
  static Vec<T> where_positive(const Input* rectified, Vec<T> v) { return P::read(rectified) > 0 ? v : Vec<T>{}; }

  template <class Finish>
  void multiply(int layer, int64_t rows, Finish finish) const {
    const Linear& each = op_.layer[layer];
    multiply_rows<P>(rows, input(layer), row_pitch(each.in), each.packed, depth<P>(each.in), places(each.out), finish);
  }
  template <class Finish>
  void multiply_back(int layer, int64_t rows, Finish finish) const {
    const Linear& each = op_.layer[layer];
    multiply_rows<P>(rows, grad(layer), row_pitch(each.out), each.transposed, depth<P>(each.out), places(each.in),
                     finish);
  }

  // Stores h, and its rectified values as the input of a layer: of the last one, after the norm.
  struct Keep {
    T* h;
    Input* input;
    const T *norm_shift, *norm_scale;  // nullptr: none

    FASTFLOW_INLINE void operator()(int64_t at, int64_t column, Vec<T> v) const {
      store(h + at, v);
      if (norm_shift != nullptr) v = (v - load(norm_shift + column)) * load(norm_scale + column);
      P::write(input + at, at_least(T(0), v));
    }
  };
  Keep kept_for(int layer) const {
    if (layer < op_.layers - 1) return {h_, input(layer), nullptr, nullptr};
    return {h_, input(layer), reinterpret_cast<const T*>(op_.norm_shift), reinterpret_cast<const T*>(op_.norm_scale)};
  }

  // A row that several results in turn have in common is multiplied once.
  void first_layer(const Results& results) const {
    const Linear& first = op_.layer[0];
    const int64_t pitch = row_pitch(first.in);
    Input* const distinct = reinterpret_cast<Input*>(op_.distinct);
    int64_t place[tile_rows], count = 0;
    for (int64_t r = 0; r < results.rows; ++r) {
      const bool again = op_.passive_shared && r > 0 && results.row[r] == results.row[r - 1];
      if (!again) read_passive(distinct + count++ * pitch, op_.passive_shared ? results.row[r] : results.first + r);
      place[r] = count - 1;
      if (op_.tile.x != nullptr) memcpy(input(0) + r * pitch, distinct + place[r] * pitch, pitch * sizeof(Input));
    }
    T* const product = made_;
    const int64_t product_pitch = pitch_;
    multiply_rows<P>(count, distinct, pitch, first.packed, depth<P>(first.in), columns_,
                     [=](int64_t row, int64_t column, Vec<T> v) { store(product + row * product_pitch + column, v); });
    const Keep keep = kept_for(1);
    for (int64_t r = 0; r < results.rows; ++r) {
      const T* const row = static_cast<const T*>(op_.table) + results.label[r] * hidden_.size;
      for (int64_t column = 0; column < columns_; column += width<T>) {
        const Vec<T> of_class = load_part(row + column, hidden_.size - column);
        keep(r * pitch_ + column, column, load(product + place[r] * pitch_ + column) + of_class);
      }
    }
  }

  void read_passive(Input* to, int64_t row) const {
    const Features& in = op_.layer[0].in;
    const T* const from = dense_row<T>(op_.passive, row, in.size, op_.line);
    for (int64_t i = 0; i < places(in); i += width<T>) P::write(to + i, load_part(from + i, in.size - i));
  }

  const ResidualCoupling& op_;
  const Features hidden_;
  const int64_t pitch_, columns_, offset_;
  T *const h_, *const made_;
  const int64_t made_pitch_;
};

// Calls run(P{}) for the products that the op asks for.
template <class Run>
void with_products(const ResidualCoupling& op, Run run) {
  switch (op.products) {
    case Products::in_double: return run(InNumbers<double>{});
    case Products::in_float: return run(InNumbers<float>{});
#if defined(__AVX512F__)
    case Products::in_bfloat16: return run(InBfloat16{});
#else
    case Products::in_bfloat16: return;
#endif
    case Products::of_bfloat16_in_float: return run(OfBfloat16InFloat{});
  }
}

}  // namespace fastflow::FASTFLOW_ISA

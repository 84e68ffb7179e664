// The gradients of linear layers: sums over rows of inputs and of gradients of outputs, added to what is there.
#pragma once

#include "products.h"

namespace fastflow::FASTFLOW_ISA {

// Rows of inputs, or of gradients of outputs, as products that sum over rows take them.
template <class P>
struct Matrix {
  using T = typename P::T;
  using Input = typename P::Input;
  const Input* data;
  int64_t pitch;    // of P::fold rows
  int64_t columns;  // that may be read

  // Vectors of one place and the next ones, of each of P::fold rows.
  FASTFLOW_INLINE void read(int64_t fold, int64_t column, Vec<T> (&rows)[P::fold]) const {
    const Input* const from = data + fold * pitch + column * P::fold;
    if constexpr (P::fold == 1) {
      rows[0] = load_part(from, columns - column);
    } else {
      const Vec<T> pair = load(reinterpret_cast<const T*>(from));
      rows[0] = (Vec<T>)((UnsignedLanes<T>)pair << 16);
      rows[1] = (Vec<T>)((UnsignedLanes<T>)pair & 0xffff0000u);
    }
  }
};

template <class T>
FASTFLOW_INLINE void add(T* to, Vec<T> v, int64_t count) {
  store_part(to, load_part(to, count) + v, count);
}

// 32 columns, from `column` on, of the gradient of a layer's matrix. The inputs may be read beyond their features.
template <class P>
void add_weight_gradient(const Linear& layer, const Matrix<P>& inputs, const Matrix<P>& grads, int64_t folds,
                         int64_t column) {
  using T = typename P::T;
  const int64_t size = layer.in.size;
  Vec<T> sums[tall][2];
  for (const int64_t end = column + 32; column < end; column += panel<T>) {
    for (int64_t part = 0; part < layer.out.parts; ++part) {
      const auto* const from = grads.data + part * layer.out.pitch * P::fold;
      T* to = static_cast<T*>(layer.grad) + part * layer.out.size * size + column;
      for (int64_t row = 0; row < layer.out.size;) {
        const int done = multiply_block<P, true>(layer.out.size - row, from + row * P::fold, grads.pitch,
                                                 inputs.data + column * P::fold, inputs.pitch, folds, sums);
        for (int m = 0; m < done; ++m, ++row, to += size) {
          for (int v = 0; v < 2; ++v) add(to + v * width<T>, sums[m][v], size - column - v * width<T>);
        }
      }
    }
  }
}

// Of term(fold, numbers, row of the fold); in parts, so that few roundings follow each other.
template <class P, class Term>
Vec<typename P::T> column_sums(const Matrix<P>& of, int64_t folds, int64_t column, Term term) {
  Vec<typename P::T> sum = {}, rows[P::fold];
  for (int64_t fold = 0; fold < folds;) {
    Vec<typename P::T> part = {};
    for (const int64_t end = smaller(fold + 32, folds); fold < end; ++fold) {
      of.read(fold, column, rows);
      for (int n = 0; n < P::fold; ++n) part += term(fold, rows[n], n);
    }
    sum += part;
  }
  return sum;
}

template <class P>
void add_bias_gradient(const Linear& layer, const Matrix<P>& grads, int64_t folds) {
  using T = typename P::T;
  for (int64_t part = 0; part < layer.out.parts; ++part) {
    T* const to = static_cast<T*>(layer.grad_bias) + part * layer.out.size;
    for (int64_t i = 0; i < layer.out.size; i += width<T>) {
      add(to + i, column_sums(grads, folds, part * layer.out.pitch + i, [](int64_t, Vec<T> v, int) { return v; }),
          layer.out.size - i);
    }
  }
}

}  // namespace fastflow::FASTFLOW_ISA

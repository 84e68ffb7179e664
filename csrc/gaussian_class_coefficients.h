// The coefficients c[b, k] = d loss / d scores[b, k], element by element: from the scores as they are made, or as the
// forward pass kept them.
#pragma once

#include "gaussian_class_scores.h"

namespace fastflow::gaussian {

// The epilogue of ScoreKernel that leaves the coefficients, or the gradient of the weights, or both.
template <class T>
struct Coefficients {
  struct Row {};
  Choice<T> choice;
  Strided<T> marginal, grad_marginal, grad_picked, grad_scores;
  T *coefficients, *grad_weights;
  int64_t classes;

  template <class Tile>
  FASTFLOW_DEVICE void take(const Tile& tile, Row&, int thread) const {
    for (int i = thread; i < tile.rows * tile.classes; i += Tile::threads) {
      const int r = i / tile.classes, j = i % tile.classes;
      const int64_t b = tile.row + r, k = tile.klass + j, label = choice.label(b);
      const T score = tile.score(r, j), rate = grad_picked.data == nullptr ? T(0) : grad_picked.at(b);
      const T weight = choice.weights.data == nullptr ? T(0) : choice.weights.at(b, k);
      if (coefficients != nullptr) {
        T c = grad_scores.data == nullptr ? T(0) : grad_scores.at(b, k);
        if (grad_marginal.data != nullptr) c += grad_marginal.at(b) * posterior(score, marginal.at(b));
        coefficients[b * classes + k] = c + rate * (label < 0 ? weight : T(label == k));
      }
      if (grad_weights != nullptr) {
        grad_weights[b * classes + k] = label >= 0 || rate == 0 ? T(0) : rate * moved(weight, score);
      }
    }
  }

  FASTFLOW_DEVICE void finish(const Row&, int64_t, int64_t, int, int) const {}

  // At most 1, also where scores are so large that another order of summation moved them.
  FASTFLOW_DEVICE static T posterior(T score, T marginal) {
    if (score == -INFINITY) return 0;
    const T above = score - marginal;
    return std::exp(above > 0 ? T(0) : above);
  }
};

// Block (x, y) takes tile x of rows and y of classes.
template <class T>
struct CoefficientKernel {
  static constexpr int threads = 128, blocks = 4, rows = 64, classes = 128;
  struct Shared {};
  struct Tile {
    static constexpr int threads = CoefficientKernel::threads;
    const Strided<T>& scores;
    int64_t row, klass;
    int rows, classes;

    FASTFLOW_DEVICE T score(int i, int j) const { return scores.at(row + i, klass + j); }
  };
  Strided<T> scores;
  int64_t all_rows;
  Coefficients<T> coefficients;

  template <class Block>
  FASTFLOW_DEVICE void operator()(Shared&, const Block& block) const {
    const int64_t row = block.x() * rows, klass = block.y() * classes;
    const int some_rows = int(smaller(rows, all_rows - row));
    const int some_classes = int(smaller(classes, coefficients.classes - klass));
    typename Coefficients<T>::Row state = {};
    coefficients.take(Tile{scores, row, klass, some_rows, some_classes}, state, block.thread());
  }
};

}  // namespace fastflow::gaussian

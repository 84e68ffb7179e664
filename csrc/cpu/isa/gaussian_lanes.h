// Rows of scores: a tile's energies become scores of Gaussian classes, with rows in the lanes.
#pragma once

#include "gaussian_energies.h"

namespace fastflow::FASTFLOW_ISA {

// Values [rows, K] of one class and up to a vector of rows; 0 beyond the last.
template <class T>
FASTFLOW_INLINE Vec<T> of_class(const Strided& values, int64_t row, int64_t left, int64_t klass) {
  Vec<T> v = {};
  for (int lane = 0; lane < width<T> && lane < left; ++lane) v[lane] = *at<T>(values, row + lane, klass);
  return v;
}

// Labels as numbers of the dtype of arithmetic, to be compared with classes; -1 where there is none.
template <class T>
FASTFLOW_INLINE Vec<T> labels_of(const GaussianClasses& op, int64_t row, int64_t left) {
  Vec<T> labels = splat<T>(-1);
  for (int lane = 0; lane < width<T> && lane < left && op.labels != nullptr; ++lane) {
    labels[lane] = T(op.labels[row + lane]);
  }
  return labels;
}

// A vector of rows of a tile.
template <class T>
struct Lane {
  const GaussianClasses& op;
  T* score_at;  // [block_classes, tile_rows]
  int64_t row, left;

  int64_t klass(int64_t k) const { return op.first_class + k; }
  Vec<T> score(int64_t k) const { return load(score_at + k * tile_rows); }
  // d picked / d score.
  Vec<T> chosen(int64_t k, Vec<T> labels) const {
    const Vec<T> weight = op.weights.data == nullptr ? Vec<T>{} : of_class<T>(op.weights, row, left, klass(k));
    const Lanes<T> labelled = labels >= 0, own = labels == splat(T(klass(k)));
    return select<T>(labelled, select<T>(own, splat<T>(1), Vec<T>{}), weight);
  }
  // From the energies that are there; returns the largest.
  Vec<T> make_scores() const {
    Vec<T> most = splat<T>(-INFINITY);
    for (int64_t k = 0; k < op.block_classes; ++k) {
      const Vec<T> half = static_cast<const T*>(op.factor)[k] * score(k);
      const Vec<T> own = (static_cast<const T*>(op.constant)[k] - half) + static_cast<const T*>(op.rest)[k];
      store(score_at + k * tile_rows, own);
      most = own > most ? own : most;
      if (op.energy != nullptr) store(static_cast<T*>(op.energy) + k * op.part_pitch + row - op.first_row, 2 * half);
    }
    return most;
  }
  void read_scores() const {
    for (int64_t k = 0; k < op.block_classes; ++k) {
      store(score_at + k * tile_rows, of_class<T>(op.saved_scores, row, left, klass(k)));
    }
  }
};

// Calls each(lane) for all rows, a vector of them at a time.
template <class T, class Packed, class Each>
void over_tiles(const GaussianClasses& op, int64_t first_row, int64_t last_row, Packed packed, Each each) {
  alignas(64) T scores[most_block_classes * tile_rows];
  for (int64_t row = first_row; row < last_row; row += tile_rows) {
    const RowTile<T> tile(op, row, last_row, packed(row));
    if (op.saved_scores.data == nullptr) energies(op, tile, scores);
    for (int r = 0; r < tile.count; r += width<T>) each(Lane<T>{op, scores + r, row + r, tile.count - r});
  }
}

}  // namespace fastflow::FASTFLOW_ISA

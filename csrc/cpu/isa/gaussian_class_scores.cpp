// gaussian_class_scores for one instruction set; see csrc/cpu/gaussian_class_scores.cpp for what it costs.
#include "gaussian_lanes.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

template <class T>
void fold(const GaussianClasses& op, const Lane<T>& lane) {
  const Vec<T> most_of_block = lane.make_scores();
  const int64_t row = lane.row, left = lane.left;
  T *const most_at = static_cast<T*>(op.marginal) + row, *const sum_at = static_cast<T*>(op.sum) + row;
  const bool first = op.first_class == 0, picks = op.labels != nullptr || op.weights.data != nullptr;
  const Vec<T> before = first ? splat<T>(-INFINITY) : load_part(most_at, left);
  const Vec<T> most = most_of_block > before ? most_of_block : before;
  const Lanes<T> none = most == splat<T>(-INFINITY);  // no class can occur so far
  const Vec<T> base = select<T>(none, Vec<T>{}, most);
  Vec<T> sum = first ? Vec<T>{} : load_part(sum_at, left) * exp<T>(before - base);
  for (int64_t k = 0; k < op.block_classes; ++k) sum += exp_below_overflow<T>(lane.score(k) - base);
  store_part(most_at, op.last_block ? base + log(split<T>(sum)) : most, left);
  store_part(sum_at, sum, left);
  T* const picked_at = static_cast<T*>(op.picked) + row;
  Vec<T> picked = first ? Vec<T>{} : load_part(picked_at, left);
  if (picks) {
    const Vec<T> labels = labels_of<T>(op, row, left);
    for (int64_t k = 0; k < op.block_classes; ++k) {
      const Vec<T> chosen = lane.chosen(k, labels);
      const Lanes<T> silent = chosen == Vec<T>{};
      picked += select<T>(silent, Vec<T>{}, chosen * lane.score(k));
    }
  }
  store_part(picked_at, picked, left);
  if (op.scores == nullptr) return;
  T* const scores = static_cast<T*>(op.scores) + row * op.classes + op.first_class;
  for (int64_t lane_row = 0; lane_row < smaller(left, width<T>); ++lane_row) {
    for (int64_t k = 0; k < op.block_classes; ++k) {
      scores[lane_row * op.classes + k] = lane.score_at[k * tile_rows + lane_row];
    }
  }
}

template <class T>
void score(const GaussianClasses& op, int64_t first_row, int64_t last_row) {
  over_tiles<T>(op, first_row, last_row, [&](int64_t) { return static_cast<T*>(op.packed); },
                [&](const Lane<T>& lane) { fold(op, lane); });
}

template <class T>
void derive(const GaussianClasses& op, int64_t first, int64_t last) {
  for (int64_t klass = first; klass < last; ++klass) {
    const int64_t pitch = padded(op.features), line = klass * pitch;
    if (klass < op.lane_classes) {
      const int64_t offset = klass / width<T> * width<T> * pitch + klass % width<T>;
      derive_class(op, klass, static_cast<T*>(op.mean) + offset, static_cast<T*>(op.inverse_scale) + offset, width<T>);
    } else {
      derive_class(op, klass, static_cast<T*>(op.mean) + line, static_cast<T*>(op.inverse_scale) + line, 1);
    }
    if (op.mean_of != nullptr && op.mean_of != op.mean) {
      derive_class(op, klass, static_cast<T*>(op.mean_of) + line, static_cast<T*>(op.inverse_scale_of) + line, 1);
    }
  }
}

}  // namespace

void gaussian_class_block(const GaussianClasses& op, int64_t first, int64_t last) {
  op.in_double ? derive<double>(op, first, last) : derive<float>(op, first, last);
}

void gaussian_class_scores(const GaussianClasses& op, int64_t first_row, int64_t last_row) {
  op.in_double ? score<double>(op, first_row, last_row) : score<float>(op, first_row, last_row);
}

}  // namespace fastflow::FASTFLOW_ISA

// gaussian_class_scores_backward for one instruction set: the gradients of the scores, z's from them, the parameters'.
#include "gaussian_lanes.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

// The gradient of the loss with respect to every score of the lane, and what needs no more than that.
template <class T>
void differentiate(const GaussianClasses& op, const Lane<T>& lane) {
  op.saved_scores.data == nullptr ? void(lane.make_scores()) : lane.read_scores();
  const int64_t row = lane.row, left = lane.left, place = row - op.first_row;
  const Vec<T> marginal = load_part(static_cast<const T*>(op.saved_marginal) + row, left);
  const Vec<T> grad_marginal =
      op.grad_marginal.data == nullptr ? Vec<T>{} : of_class<T>(op.grad_marginal, row, left, 0);
  const Vec<T> grad_picked = op.grad_picked.data == nullptr ? Vec<T>{} : of_class<T>(op.grad_picked, row, left, 0);
  const Vec<T> labels = labels_of<T>(op, row, left);
  for (int64_t k = 0; k < op.block_classes; ++k) {
    const Vec<T> score = lane.score(k), chosen = lane.chosen(k, labels);
    const Lanes<T> impossible = score == splat<T>(-INFINITY), silent = impossible & (chosen == Vec<T>{});
    const Vec<T> posterior = select<T>(impossible, Vec<T>{}, exp_below_overflow<T>(at_most(T(0), score - marginal)));
    Vec<T> grad = op.grad_scores.data == nullptr ? Vec<T>{} : of_class<T>(op.grad_scores, row, left, lane.klass(k));
    grad += grad_marginal * posterior + grad_picked * chosen;
    store(static_cast<T*>(op.coefficient) + k * op.part_pitch + place, grad);
    if (op.grad_weights == nullptr) continue;
    const Lanes<T> labelled = labels >= Vec<T>{};
    const Vec<T> moved = select<T>(silent, Vec<T>{}, score);
    const Vec<T> grad_weight = select<T>(labelled, Vec<T>{}, grad_picked * moved);
    T* const to = static_cast<T*>(op.grad_weights) + row * op.classes + lane.klass(k);
    for (int r = 0; r < smaller(left, width<T>); ++r) to[r * op.classes] = grad_weight[r];
  }
}

// grad_z = -sum_k coefficient[k] (z - mean[k]) / scale[k]^2 of a few rows and vectors of features.
template <bool scaled, int rows, int vectors, class T, class Read>
FASTFLOW_INLINE void pull(const GaussianClasses& op, const T* const* row, int64_t place, int64_t d, Read read,
                          Vec<T> (&sum)[rows][vectors]) {
  const int64_t pitch = padded(op.features);
  Vec<T> z[rows][vectors];
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) z[r][v] = read(row[r] + d, v);
  }
  for (int64_t k = 0; k < op.block_classes; ++k) {
    const T* const coefficient = static_cast<const T*>(op.coefficient) + k * op.part_pitch + place;
    Vec<T> m[vectors], precision[vectors];
    for (int v = 0; v < vectors; ++v) {
      m[v] = load(static_cast<const T*>(op.mean_of) + k * pitch + d + v * width<T>);
      if constexpr (scaled) {
        const Vec<T> i = load(static_cast<const T*>(op.inverse_scale_of) + k * pitch + d + v * width<T>);
        precision[v] = i * i;
      } else {
        precision[v] = splat<T>(2 * static_cast<const T*>(op.factor)[k]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const Vec<T> c = splat<T>(coefficient[r]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] += (c * precision[v]) * (m[v] - z[r][v]);
    }
  }
}

template <bool scaled, class T>
void pull_tile(const GaussianClasses& op, const RowTile<T>& tile, int64_t row) {
  constexpr int rows = 4, vectors = register_bytes == 64 ? 2 : 1;
  const int64_t place = row - op.first_row;
  for (int first = 0; first < tile.count; first += rows) {
    T* const to = static_cast<T*>(op.grad_z) + (place + first) * op.features;
    const auto finish = [&](auto& sum, int64_t d, int count, auto write) __attribute__((always_inline)) {
      for (int r = 0; r < smaller(rows, tile.count - first); ++r) {
        for (int v = 0; v < count; ++v) write(to + r * op.features + d + v * width<T>, sum[r][v]);
      }
    };
    const bool fresh = op.first_class == 0;
    int64_t d = 0;
    for (; d + vectors * width<T> <= op.features; d += vectors * width<T>) {
      Vec<T> sum[rows][vectors] = {};
      pull<scaled, rows, vectors, T>(op, tile.row + first, place + first, d,
                                     [](const T* from, int v) { return load(from + v * width<T>); }, sum);
      finish(sum, d, vectors, [=](T* at, Vec<T> v) { store<T>(at, fresh ? v : v + load(at)); });
    }
    for (; d < op.features; d += width<T>) {
      const int64_t left = op.features - d;
      Vec<T> sum[rows][1] = {};
      pull<scaled, rows, 1, T>(op, tile.row + first, place + first, d,
                               [=](const T* from, int) { return load_part(from, left); }, sum);
      finish(sum, d, 1, [=](T* at, Vec<T> v) { store_part<T>(at, fresh ? v : v + load_part(at, left), left); });
    }
  }
}

template <class T>
void differentiate_rows(const GaussianClasses& op, int64_t first_row, int64_t last_row) {
  const auto packed = [&](int64_t row) {
    return op.packed == nullptr ? nullptr : static_cast<T*>(op.packed) + (row - op.first_row) * op.features;
  };
  over_tiles<T>(op, first_row, last_row, packed, [&](const Lane<T>& lane) { differentiate(op, lane); },
                [&](const RowTile<T>& tile, int64_t row) {
                  if (op.grad_z == nullptr) return;
                  op.scaled ? pull_tile<true>(op, tile, row) : pull_tile<false>(op, tile, row);
                  if (op.narrow_grad_z == nullptr || !op.last_block) return;
                  const int64_t first = (row - op.first_row) * op.features;
                  unpack(op.narrow_grad_z + first * bytes_of[op.z_dtype], static_cast<const T*>(op.grad_z) + first,
                         op.z_dtype, Box{tile.count, op.features, op.features, 1});
                });
}

constexpr int most_classes_together = gaussian_group_classes;
constexpr int most_vectors_together = register_bytes == 64 ? 2 : 1;
constexpr int64_t rows_together = 32;  // summed by themselves

template <class T>
void add_to(T* to, Vec<T> v, int64_t left, bool fresh) {
  store_part<T>(to, fresh ? v : v + load_part(to, left), left);
}

// Of a few classes and vectors of features: sums over the part's rows of coefficient times (z - mean), and times its
// square.
template <bool scaled, int classes, int vectors, class T, class Read>
FASTFLOW_INLINE void sum_over_part(const GaussianClasses& op, int64_t k, int64_t d, Read read) {
  const int64_t pitch = padded(op.features), z_pitch = op.packed == nullptr ? op.z_row : op.features;
  const T* const z = op.packed == nullptr ? reinterpret_cast<const T*>(op.z) + op.first_row * op.z_row
                                          : static_cast<const T*>(op.packed);
  const T* const coefficient = static_cast<const T*>(op.coefficient) + k * op.part_pitch;
  const T* const mean = static_cast<const T*>(op.mean_of) + k * pitch + d;
  Vec<T> m[classes][vectors], first[classes][vectors] = {}, second[classes][vectors] = {};
  for (int c = 0; c < classes; ++c) {
    for (int v = 0; v < vectors; ++v) m[c][v] = load(mean + c * pitch + v * width<T>);
  }
  for (int64_t start = 0; start < op.part_rows; start += rows_together) {
    const int64_t end = smaller(start + rows_together, op.part_rows);
    Vec<T> once[classes][vectors] = {}, twice[classes][vectors] = {};
    for (int64_t row = start; row < end; ++row) {
      Vec<T> x[vectors];
      for (int v = 0; v < vectors; ++v) x[v] = read(z + row * z_pitch + d, v);
#pragma GCC unroll 4
      for (int c = 0; c < classes; ++c) {
        const Vec<T> weight = splat<T>(coefficient[c * op.part_pitch + row]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
          const Vec<T> t = x[v] - m[c][v];
          if constexpr (scaled) {
            const Vec<T> weighted = weight * t;
            once[c][v] += weighted;
            twice[c][v] += weighted * t;
          } else {
            once[c][v] += weight * t;
          }
        }
      }
    }
    for (int c = 0; c < classes; ++c) {
      for (int v = 0; v < vectors; ++v) {
        first[c][v] += once[c][v];
        if constexpr (scaled) second[c][v] += twice[c][v];
      }
    }
  }
  const bool fresh = op.first_row == 0;
  for (int c = 0; c < classes; ++c) {
    const int64_t klass = op.first_class + k + c;
    const T* const of_class = coefficient + c * op.part_pitch;
    const auto sum_of = [&](auto value) __attribute__((always_inline)) {
      Vec<T> lanes = {};
      for (int64_t row = 0; row < op.part_rows; row += width<T>) lanes += value(row, op.part_rows - row);
      double sum = 0;
      for (int lane = 0; lane < width<T>; ++lane) sum += lanes[lane];
      return sum;
    };
    const auto add_to_one = [&](void* sums, double value) {
      T* const to = static_cast<T*>(sums) + klass;
      *to = T(value + (fresh ? 0 : *to));
    };
    const T total = scaled || d == 0 ? T(sum_of([&](int64_t row, int64_t left) {
      return load_part(of_class + row, left);
    })) : 0;
    if (d == 0) add_to_one(op.grad_log_prior, total);
    if (!scaled && d == 0) {
      const T* const energy = static_cast<const T*>(op.energy) + (k + c) * op.part_pitch;
      add_to_one(op.grad_log_scales, sum_of([&](int64_t row, int64_t left) {
        return load_part(of_class + row, left) * (load_part(energy + row, left) - T(op.features));
      }));
    }
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = d + v * width<T>, left = op.features - at;
      Vec<T> precision = splat<T>(2 * static_cast<const T*>(op.factor)[k + c]);
      if constexpr (scaled) {
        const Vec<T> i = load(static_cast<const T*>(op.inverse_scale_of) + (k + c) * pitch + at);
        precision = i * i;
        add_to(static_cast<T*>(op.grad_log_scales) + klass * op.features + at, second[c][v] * precision - total, left,
               fresh);
      }
      add_to(static_cast<T*>(op.grad_means) + klass * op.features + at, first[c][v] * precision, left, fresh);
    }
  }
}

template <bool scaled, class T>
void sum_units(const GaussianClasses& op, int64_t first_unit, int64_t last_unit) {
  constexpr int vectors = most_vectors_together;
  const int64_t groups = gaussian_feature_groups(op);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const int64_t first = unit / groups * most_classes_together, from = unit % groups * gaussian_group_features;
    const int count = static_cast<int>(smaller(most_classes_together, op.block_classes - first));
    in_parts<most_classes_together>(count, [&](auto classes, int k) {
      int64_t d = from;
      const int64_t end = smaller(op.features, from + gaussian_group_features);
      for (; d + vectors * width<T> <= end; d += vectors * width<T>) {
        sum_over_part<scaled, classes.value, vectors, T>(
            op, first + k, d, [](const T* at, int v) { return load(at + v * width<T>); });
      }
      for (; d < end; d += width<T>) {
        const int64_t left = op.features - d;
        sum_over_part<scaled, classes.value, 1, T>(op, first + k, d,
                                                   [=](const T* at, int) { return load_part(at, left); });
      }
    });
  }
}

}  // namespace

void gaussian_class_coefficients(const GaussianClasses& op, int64_t first_row, int64_t last_row) {
  op.in_double ? differentiate_rows<double>(op, first_row, last_row) : differentiate_rows<float>(op, first_row, last_row);
}

void gaussian_class_parameters(const GaussianClasses& op, int64_t first, int64_t last) {
  if (op.in_double) {
    op.scaled ? sum_units<true, double>(op, first, last) : sum_units<false, double>(op, first, last);
  } else {
    op.scaled ? sum_units<true, float>(op, first, last) : sum_units<false, float>(op, first, last);
  }
}

}  // namespace fastflow::FASTFLOW_ISA

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

template <class T>
void differentiate_rows(const GaussianClasses& op, int64_t first_row, int64_t last_row) {
  const auto packed = [&](int64_t row) {
    return op.packed == nullptr ? nullptr : static_cast<T*>(op.packed) + (row - op.first_row) * op.features;
  };
  over_tiles<T>(op, first_row, last_row, packed, [&](const Lane<T>& lane) { differentiate(op, lane); });
}

constexpr int classes_together = register_bytes == 64 ? 4 : 2;
constexpr int rows_together = 32;  // their gradients stay in the first cache while the classes pass; summed by themselves

// A vector of features of a few rows, which lie `pitch` numbers apart.
template <class T>
struct Rows {
  const T* z;
  int64_t pitch, place;  // place: of the first row in the part
  int count;
  T* grad_z;  // [count, width<T>]
};

// Of a few classes: adds the sums over the rows of coefficient (z - mean) and of coefficient (z - mean)^2, and takes
// coefficient (z - mean) / scale^2 from grad_z.
template <bool scaled, bool with_z, bool with_sums, int classes, class T>
FASTFLOW_INLINE void of_classes(const Rows<T>& rows, const T* coefficient, int64_t coefficient_pitch,
                                const Vec<T> (&mean)[classes], const Vec<T> (&precision)[classes],
                                Vec<T> (&first)[classes], Vec<T> (&second)[classes]) {
  for (int r = 0; r < rows.count; ++r) {
    const Vec<T> z = load(rows.z + r * rows.pitch);
    Vec<T> grad = {};
    if constexpr (with_z) grad = load(rows.grad_z + r * width<T>);
#pragma GCC unroll 4
    for (int c = 0; c < classes; ++c) {
      const Vec<T> t = z - mean[c], weighted = splat<T>(coefficient[c * coefficient_pitch + r]) * t;
      if constexpr (with_sums) first[c] += weighted;
      if constexpr (with_sums && scaled) second[c] += weighted * t;
      if constexpr (with_z) grad -= weighted * precision[c];
    }
    if constexpr (with_z) store(rows.grad_z + r * width<T>, grad);
  }
}

// `fresh`: the first rows of their slice.
template <bool scaled, bool with_z, bool with_sums, class T>
void through_classes(const GaussianClasses& op, const Rows<T>& rows, int64_t d, T* sums, bool fresh) {
  const int64_t pitch = padded(op.features);
  in_parts<classes_together>(static_cast<int>(op.block_classes), [&](auto classes, int k) __attribute__((always_inline)) {
    Vec<T> mean[classes.value], precision[classes.value], first[classes.value] = {}, second[classes.value] = {};
    for (int c = 0; c < classes; ++c) {
      mean[c] = load(static_cast<const T*>(op.mean_of) + (k + c) * pitch + d);
      precision[c] = splat<T>(2 * static_cast<const T*>(op.factor)[k + c]);
      if constexpr (scaled) {
        const Vec<T> inverse = load(static_cast<const T*>(op.inverse_scale_of) + (k + c) * pitch + d);
        precision[c] = inverse * inverse;
      }
    }
    of_classes<scaled, with_z, with_sums>(rows, static_cast<const T*>(op.coefficient) + k * op.part_pitch + rows.place,
                                          op.part_pitch, mean, precision, first, second);
    if constexpr (!with_sums) return;
    for (int c = 0; c < classes; ++c) {
      T* const to = sums + (k + c) * 2 * pitch + d;
      store<T>(to, fresh ? first[c] : load(to) + first[c]);
      if constexpr (scaled) store<T>(to + pitch, fresh ? second[c] : load(to + pitch) + second[c]);
    }
  });
}

// `count` rows from `place` of the part on, a vector of features.
template <bool scaled, bool with_z, bool with_sums, class T>
void through_rows(const GaussianClasses& op, int64_t place, int count, int64_t d, T* sums, bool fresh) {
  alignas(64) T grad_z[rows_together * width<T>], padded_z[rows_together * width<T>];
  const int64_t left = op.features - d, z_pitch = op.packed == nullptr ? op.z_row : op.features;
  const T* const z = op.packed == nullptr ? reinterpret_cast<const T*>(op.z) + op.first_row * op.z_row
                                          : static_cast<const T*>(op.packed);
  Rows<T> rows = {z + place * z_pitch + d, z_pitch, place, count, grad_z};
  T* const to = with_z ? static_cast<T*>(op.grad_z) + place * op.features + d : nullptr;
  for (int r = 0; r < count && with_z; ++r) {
    store(grad_z + r * width<T>, op.first_class == 0 ? Vec<T>{} : load_part(to + r * op.features, left));
  }
  if (left < width<T>) {
    for (int r = 0; r < count; ++r) store(padded_z + r * width<T>, load_part(rows.z + r * z_pitch, left));
    rows.z = padded_z, rows.pitch = width<T>;
  }
  // The next rows: the hardware does not foresee so short runs.
  for (int64_t r = rows_together; r < 2 * rows_together && place + r < op.part_rows; ++r) {
    __builtin_prefetch(z + (place + r) * z_pitch + d);
    if (with_z) __builtin_prefetch(to + r * op.features, 1);
  }
  through_classes<scaled, with_z, with_sums>(op, rows, d, sums, fresh);
  for (int r = 0; r < count && with_z; ++r) {
    store_part(to + r * op.features, load(grad_z + r * width<T>), left);
    if (op.narrow_grad_z == nullptr || !op.last_block) continue;
    unpack(op.narrow_grad_z + ((place + r) * op.features + d) * bytes_of[op.z_dtype], grad_z + r * width<T>, op.z_dtype,
           Box{1, smaller(left, width<T>), 0, 1});
  }
}

template <bool scaled, class T>
void through_units(const GaussianClasses& op, int64_t first, int64_t last) {
  const int64_t groups = (op.features + gaussian_unit_features - 1) / gaussian_unit_features;
  const auto kernel = op.sums == nullptr     ? through_rows<scaled, true, false, T>
                      : op.grad_z == nullptr ? through_rows<scaled, false, true, T>
                                             : through_rows<scaled, true, true, T>;
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t slice = unit / groups, from = unit % groups * gaussian_unit_features;
    const int64_t end = smaller(op.features, from + gaussian_unit_features), start = slice * gaussian_slice_rows;
    T* const sums = op.sums == nullptr ? nullptr
                                       : static_cast<T*>(op.sums) + slice * op.block_classes * 2 * padded(op.features);
    for (int64_t place = start; place < smaller(start + gaussian_slice_rows, op.part_rows); place += rows_together) {
      const int count = static_cast<int>(smaller(rows_together, op.part_rows - place));
      for (int64_t d = from; d < end; d += width<T>) kernel(op, place, count, d, sums, place == start);
    }
  }
}

template <class T>
void add_class(const GaussianClasses& op, int64_t k) {
  const int64_t pitch = padded(op.features), klass = op.first_class + k;
  const bool fresh = op.first_row == 0;
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
  const T* const coefficient = static_cast<const T*>(op.coefficient) + k * op.part_pitch;
  const double total = sum_of([&](int64_t row, int64_t left) { return load_part(coefficient + row, left); });
  add_to_one(op.grad_log_prior, total);
  if (!op.scaled) {
    const T* const energy = static_cast<const T*>(op.energy) + k * op.part_pitch;
    add_to_one(op.grad_log_scales, sum_of([&](int64_t row, int64_t left) {
      return load_part(coefficient + row, left) * (load_part(energy + row, left) - T(op.features));
    }));
  }
  for (int64_t d = 0; d < op.features; d += width<T>) {
    const T* sums = static_cast<const T*>(op.sums) + k * 2 * pitch + d;
    Vec<T> first = {}, second = {}, precision = splat<T>(2 * static_cast<const T*>(op.factor)[k]);
    for (int64_t row = 0; row < op.part_rows; row += gaussian_slice_rows, sums += op.block_classes * 2 * pitch) {
      first += load(sums);
      if (op.scaled) second += load(sums + pitch);
    }
    const auto add = [&](void* grads, Vec<T> v) {
      T* const to = static_cast<T*>(grads) + klass * op.features + d;
      store_part<T>(to, fresh ? v : v + load_part(to, op.features - d), op.features - d);
    };
    if (op.scaled) {
      const Vec<T> inverse = load(static_cast<const T*>(op.inverse_scale_of) + k * pitch + d);
      precision = inverse * inverse;
      add(op.grad_log_scales, second * precision - T(total));
    }
    add(op.grad_means, first * precision);
  }
}

}  // namespace

void gaussian_class_coefficients(const GaussianClasses& op, int64_t first_row, int64_t last_row) {
  op.in_double ? differentiate_rows<double>(op, first_row, last_row) : differentiate_rows<float>(op, first_row, last_row);
}

void gaussian_class_gradients(const GaussianClasses& op, int64_t first, int64_t last) {
  if (op.in_double) {
    op.scaled ? through_units<true, double>(op, first, last) : through_units<false, double>(op, first, last);
  } else {
    op.scaled ? through_units<true, float>(op, first, last) : through_units<false, float>(op, first, last);
  }
}

void gaussian_class_parameters(const GaussianClasses& op, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) op.in_double ? add_class<double>(op, k) : add_class<float>(op, k);
}

}  // namespace fastflow::FASTFLOW_ISA

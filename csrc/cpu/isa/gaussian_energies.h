// A block of Gaussian classes and the energies of a tile of rows under it: sum over d of ((z - mean) / scale)^2.
//
// Whole vectors of classes are lanes: a number of z meets a vector of them. Of the classes beyond, features are lanes where
// that is less work (see lane_classes): nothing is transposed, and a sum over lanes ends each energy. Either way the
// energies of a class lie side by side.
#pragma once

#include "convert.h"
#include "cpu/gaussian_class_scores.h"
#include "elementary.h"
#include "multiply.h"

namespace fastflow::FASTFLOW_ISA {

constexpr int tile_rows = 64;
constexpr int most_block_classes = 128;
// Summed by themselves, so that roundings do not add up with D: vectors of features, or features.
constexpr int chunk_vectors = 64, chunk_features = 128, part_features = 32;

// Lanes of one sum over lanes: rows times classes.
template <class T>
constexpr int class_group = width<T> < 4 ? width<T> : 4;
template <class T>
constexpr int row_group = width<T> / class_group<T>;

// Where so few features are left over from whole vectors, those of a group's rows share one, row after row.
template <class T>
int left_over(const GaussianClasses& op) {
  const int left = static_cast<int>(op.features % width<T>);
  return left <= class_group<T> ? left : 0;
}

template <class T>
const T* at(const Strided& values, int64_t row, int64_t column) {
  return static_cast<const T*>(values.data) + row * values.row + column * values.column;
}

// z of up to tile_rows rows, in the dtype of arithmetic, features side by side. Beyond the last row comes the last again.
template <class T>
struct RowTile {
  const T* row[tile_rows];
  int count;

  // `packed` holds tile_rows * features numbers; it is used where z cannot be read as it lies.
  RowTile(const GaussianClasses& op, int64_t first, int64_t last, T* packed) {
    count = static_cast<int>(smaller(last - first, tile_rows));
    const char* const from = op.z + first * op.z_row * bytes_of[op.z_dtype];
    const bool direct = packed == nullptr;
    if (!direct) pack(packed, from, op.z_dtype, Box{count, op.features, op.z_row, op.z_feature});
    const T* const data = direct ? reinterpret_cast<const T*>(from) : packed;
    const int64_t pitch = direct ? op.z_row : op.features;
    for (int r = 0; r < tile_rows; ++r) row[r] = data + (r < count ? r : count - 1) * pitch;
  }
};

// Parameters of one class, padded with what adds nothing to an energy, or where features are left over with those again
// for each row of a group; `apart` numbers from a feature to the next.
template <class T>
void derive_class(const GaussianClasses& op, int64_t klass, T* mean, T* inverse_scale, int64_t apart) {
  const int64_t k = op.first_class + klass;
  const T *const m = at<T>(op.means, k, 0), *const s = at<T>(op.log_scales, k, 0);
  const bool one_scale = op.log_scales.column == 0;
  double total[4] = {one_scale ? double(op.features) * s[0] : 0};
  for (int64_t d = 0; d < op.features && !one_scale; ++d) total[d % 4] += s[d * op.log_scales.column];
  for (int64_t d = 0; d < padded(op.features); ++d) mean[d * apart] = d < op.features ? m[d * op.means.column] : T(0);
  for (int64_t d = 0; d < padded(op.features) && op.scaled; d += width<T>) {
    Vec<T> log_scale = {};
    const int64_t left = smaller(op.features - d, width<T>);
    for (int lane = 0; lane < left; ++lane) log_scale[lane] = s[(d + lane) * op.log_scales.column];
    const Vec<T> inverse = exp<T>(-log_scale);
    for (int lane = 0; lane < width<T>; ++lane) inverse_scale[(d + lane) * apart] = lane < left ? inverse[lane] : T(0);
  }
  const int64_t whole = op.features / width<T> * width<T>;
  for (int64_t d = whole + class_group<T>; apart == 1 && left_over<T>(op) > 0 && d < whole + width<T>; ++d) {
    mean[d] = mean[d - class_group<T>];
    if (op.scaled) inverse_scale[d] = inverse_scale[d - class_group<T>];
  }
  constexpr double half_log_two_pi = 0.91893853320467274178;
  const double prior = static_cast<const T*>(op.log_prior)[k * op.prior_stride];
  const double log_scales = (total[0] + total[1]) + (total[2] + total[3]);
  const double constant = prior - log_scales - half_log_two_pi * double(op.features);
  static_cast<T*>(op.constant)[klass] = T(constant);
  static_cast<T*>(op.rest)[klass] = prior == -INFINITY ? T(0) : T(constant - T(constant));
  static_cast<T*>(op.factor)[klass] = op.scaled ? T(0.5) : T(0.5 * ::exp(-2 * double(*s)));
}

// Sums over lanes of groups that end up in lanes class * rows + row. What `ahead` rows hold is asked for on the way.
template <bool scaled, int classes, class T>
FASTFLOW_INLINE void energies_of_group(const GaussianClasses& op, const T* const* row, const T* mean, const T* inverse,
                                       T* to, const T* left_over, const T* const* ahead, int count_ahead) {
  constexpr int rows = row_group<T>;
  const int64_t pitch = padded(op.features), chunk = int64_t{chunk_vectors} * width<T>;
  const int64_t whole = op.features / width<T> * width<T>, features = left_over == nullptr ? op.features : whole;
  Vec<T> total = {};
  if (left_over != nullptr) {
    Vec<T> sum[classes];
    const Vec<T> z = load(left_over);
#pragma GCC unroll 4
    for (int c = 0; c < classes; ++c) {
      Vec<T> t = z - load(mean + c * pitch + whole);
      if constexpr (scaled) t *= load(inverse + c * pitch + whole);
      sum[c] = t * t;
    }
    total = run_sums<T, classes, class_group<T>>(sum);
  }
  for (int64_t start = 0; start < features; start += chunk) {
    const int64_t end = smaller(features, start + chunk);
    Vec<T> sum[classes * rows];
#pragma GCC unroll 16
    for (Vec<T>& each : sum) each = Vec<T>{};
    const auto step = [&](int64_t d, auto read) __attribute__((always_inline)) {
      Vec<T> z[rows];
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) z[r] = read(row[r] + d);
#pragma GCC unroll 4
      for (int c = 0; c < classes; ++c) {
        const Vec<T> m = load(mean + c * pitch + d);
        Vec<T> i = {};
        if constexpr (scaled) i = load(inverse + c * pitch + d);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          Vec<T> t = z[r] - m;
          if constexpr (scaled) t *= i;
          sum[c * rows + r] += t * t;
        }
      }
    };
    int64_t d = start;
    for (; d + width<T> <= end; d += width<T>) {
      for (int r = 0; r < count_ahead; ++r) __builtin_prefetch(ahead[r] + d);
      step(d, [](const T* from) { return load(from); });
    }
    if (d < end) {
      for (int r = 0; r < count_ahead; ++r) __builtin_prefetch(ahead[r] + d);
      const int left = static_cast<int>(end - d);
      step(d, [left](const T* from) { return load(from, left); });
    }
    total += lane_sums<T, classes * rows>(sum);
  }
  T lanes[width<T>];
  store(lanes, total);
  for (int c = 0; c < classes; ++c) memcpy(to + c * tile_rows, lanes + c * rows, rows * sizeof(T));
}

template <bool scaled, class T>
void energies_by_features(const GaussianClasses& op, const RowTile<T>& tile, T* to) {
  constexpr int rows = row_group<T>;
  const T *const mean = static_cast<const T*>(op.mean), *const inverse = static_cast<const T*>(op.inverse_scale);
  const int all = static_cast<int>(op.block_classes - op.lane_classes);  // less than a vector has lanes
  const int left = left_over<T>(op);
  alignas(64) T together[tile_rows * class_group<T>];  // the features left over, of each group of rows a vector
  for (int r = 0; r < tile_rows && left > 0; ++r) {
    for (int d = 0; d < class_group<T>; ++d) {
      together[r * class_group<T> + d] = d < left ? tile.row[r][op.features - left + d] : T(0);
    }
  }
  int asked[width<T> + 1];  // of the rows to come, how many have been asked for when so many classes are done
  for (int k = 0; k <= all; ++k) asked[k] = (k * rows + all - 1) / all;
  for (int r = 0; r < tile.count; r += rows) {
    const T* const* const next = tile.row + r + rows;
    const bool last = r + 2 * rows > tile_rows;
    in_parts<class_group<T>>(all, [&](auto classes, int done) {
      const int64_t k = op.lane_classes + done, offset = k * padded(op.features);
      const int from = last ? 0 : asked[done], count = last ? 0 : asked[done + classes] - from;
      energies_of_group<scaled, classes.value>(op, tile.row + r, mean + offset, inverse + offset, to + k * tile_rows + r,
                                               left > 0 ? together + r * class_group<T> : nullptr, next + from, count);
    });
  }
}

// A vector of classes and as many rows, so that the energies can be transposed in registers; features [start, end), added
// to those of the features before.
template <bool scaled, class T>
FASTFLOW_INLINE void energies_of_square(const T* const* row, const T* mean, const T* inverse, int64_t start, int64_t end,
                                        T* to) {
  constexpr int rows = width<T>, most = register_bytes == 64 ? 4 : 2;
  Vec<T> total[rows] = {}, sum[rows];
  const auto step = [&](auto count, int64_t d) __attribute__((always_inline)) {
    constexpr int features = count.value;  // together, so that the address of a row is fetched once for them
    Vec<T> m[features], i[features] = {};
    for (int f = 0; f < features; ++f) {
      m[f] = load(mean + (d + f) * width<T>);
      if constexpr (scaled) i[f] = load(inverse + (d + f) * width<T>);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const T* const z = row[r] + d;
#pragma GCC unroll 4
      for (int f = 0; f < features; ++f) {
        Vec<T> t = m[f] - splat<T>(z[f]);
        if constexpr (scaled) t *= i[f];
        sum[r] += t * t;
      }
    }
  };
  for (int64_t d = start; d < end;) {
    const int64_t part_end = smaller(end, d + part_features);
#pragma GCC unroll 16
    for (Vec<T>& each : sum) each = Vec<T>{};
    for (; d + most <= part_end; d += most) step(Constant<most>{}, d);
    for (; d < part_end; ++d) step(Constant<1>{}, d);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) total[r] += sum[r];
  }
  transpose<T>(total);
  for (int c = 0; c < width<T>; ++c) {
    T* const line = to + c * tile_rows;
    store<T>(line, start == 0 ? total[c] : total[c] + load(line));
  }
}

// A square's part of z stays in the first cache while the parameters stream through it.
template <bool scaled, class T>
void energies_by_classes(const GaussianClasses& op, const RowTile<T>& tile, T* to) {
  const T *const mean = static_cast<const T*>(op.mean), *const inverse = static_cast<const T*>(op.inverse_scale);
  for (int64_t start = 0; start < op.features; start += chunk_features) {
    const int64_t end = smaller(op.features, start + chunk_features);
    for (int r = 0; r < tile.count; r += width<T>) {
      for (int64_t k = 0; k < op.lane_classes; k += width<T>) {
        const int64_t offset = k * padded(op.features);
        energies_of_square<scaled>(tile.row + r, mean + offset, inverse + offset, start, end, to + k * tile_rows + r);
      }
    }
  }
}

// to [block_classes padded, tile_rows]; beyond the tile's rows and the block's classes it holds anything.
template <class T>
void energies(const GaussianClasses& op, const RowTile<T>& tile, T* to) {
  if (op.lane_classes > 0) op.scaled ? energies_by_classes<true>(op, tile, to) : energies_by_classes<false>(op, tile, to);
  if (op.lane_classes == op.block_classes) return;
  op.scaled ? energies_by_features<true>(op, tile, to) : energies_by_features<false>(op, tile, to);
}

}  // namespace fastflow::FASTFLOW_ISA

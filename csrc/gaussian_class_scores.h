#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace fastflow::gaussian {

// A tile is rows x classes scores, one thread each; features pass through it in chunks.
constexpr int tile_rows = 32;
constexpr int tile_classes = 8;
constexpr int tile_threads = tile_rows * tile_classes;
constexpr int chunk = 32;

template <class T>
struct Problem {
  const T *z, *means, *log_scales, *log_prior;
  T* scores;  // [rows, classes], contiguous
  int64_t rows, classes, features;
  int64_t z_row, z_feature, mean_class, mean_feature, scale_class, scale_feature, prior_class;  // strides
  T constant;  // -features / 2 log(2 pi)

  FASTFLOW_HOST_DEVICE T score(int64_t k, T energy) const { return log_prior[k * prior_class] + constant - energy; }
};

// What the threads of one tile share while a chunk of features passes. One column more than the chunk keeps the rows of
// z in different banks.
template <class T>
struct Tile {
  T z[tile_rows][chunk + 1];
  T mean[tile_classes][chunk + 1];
  T log_scale[tile_classes][chunk + 1];
  T inverse_scale[tile_classes][chunk + 1];

  // Thread `thread` copies its share of the chunk that starts at `feature`: neighbours take neighbouring features.
  // Past the last feature, row or class the tile holds zeros, which add nothing to an energy.
  FASTFLOW_HOST_DEVICE void load(const Problem<T>& p, int64_t row, int64_t klass, int64_t feature, int thread) {
    const int column = thread % chunk;
    const int64_t d = feature + column;
    const bool inside = d < p.features;
    for (int i = thread / chunk; i < tile_rows; i += tile_threads / chunk) {
      z[i][column] = inside && row + i < p.rows ? p.z[(row + i) * p.z_row + d * p.z_feature] : T(0);
    }
    for (int i = thread / chunk; i < tile_classes; i += tile_threads / chunk) {
      const int64_t k = klass + i;
      const bool present = inside && k < p.classes;
      mean[i][column] = present ? p.means[k * p.mean_class + d * p.mean_feature] : T(0);
      log_scale[i][column] = present ? p.log_scales[k * p.scale_class + d * p.scale_feature] : T(0);
      inverse_scale[i][column] = present ? std::exp(-log_scale[i][column]) : T(0);
    }
  }

  // Sum over the chunk of ((z - mean) / scale)^2 / 2 + log scale.
  FASTFLOW_HOST_DEVICE T energy(int row, int klass) const {
    T sum = 0;
    for (int d = 0; d < chunk; ++d) {
      const T distance = (z[row][d] - mean[klass][d]) * inverse_scale[klass][d];
      sum += std::fma(T(0.5) * distance, distance, log_scale[klass][d]);
    }
    return sum;
  }
};

}  // namespace fastflow::gaussian

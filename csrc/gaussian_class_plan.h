// Which kernels the Gaussian class scores and their gradients launch, on how many blocks, with what memory. A Device
// launches kernels one after the other, allocates memory that lives until they are done, and says how large it is.
#pragma once

#include <algorithm>

#include "gaussian_class_coefficients.h"
#include "gaussian_class_scores_backward.h"

namespace fastflow::gaussian {

template <class T>
struct Given {
  Matrix<T> z, means;
  Strided<T> log_scales, log_prior;
  int64_t scale_rows, scale_columns;  // 1 where all classes or all features have the same
  Choice<T> choice;
};

template <class T>
struct Prepared {
  Matrix<T> inverse_scales;
  const T* constants;
};

template <class T, class Device>
Prepared<T> prepare(Device& device, const Given<T>& given) {
  const int64_t classes = given.means.rows, features = given.means.columns;
  T* const scales = device.template allocate<T>(given.scale_rows * given.scale_columns);
  T* const constants = device.template allocate<T>(classes);
  device.launch({classes}, PrepareKernel<T>{given.log_scales, given.log_prior, classes, features, given.scale_rows,
                                            given.scale_columns, scales, constants});
  return {matrix<T>(scales, sizeof(T) == 4 ? Storage::float32 : Storage::float64, classes, features,
                    given.scale_rows == 1 ? 0 : given.scale_columns, given.scale_columns == 1 ? 0 : 1),
          constants};
}

// The classes are divided among blocks where the rows alone leave multiprocessors idle.
struct Division {
  int64_t part, parts;  // classes of a part
};

template <class S>
Division divide(int64_t rows, int64_t classes, int multiprocessors) {
  const int64_t class_tiles = tiles(classes, S::classes), wanted = S::blocks * multiprocessors;
  const int64_t parts = std::clamp<int64_t>(wanted / std::max<int64_t>(tiles(rows, S::rows), 1), 1, class_tiles);
  const int64_t part = tiles(class_tiles, parts) * S::classes;
  return {part, tiles(classes, part)};
}

// use(shape, division) with the shape of tiles for that many classes.
template <class T, class Use>
void with_shape(int64_t rows, int64_t classes, int multiprocessors, Use use) {
  using Few = typename Shapes<T>::Few;
  using Many = typename Shapes<T>::Many;
  if (classes <= Few::classes) {
    use(Few(), divide<Few>(rows, classes, multiprocessors));
  } else {
    use(Many(), divide<Many>(rows, classes, multiprocessors));
  }
}

template <class S, class T, class Device, class Epilogue>
void launch_scores(Device& device, const Matrix<T>& z, const Given<T>& given, const Prepared<T>& prepared,
                   const Division& division, const Epilogue& epilogue) {
  const Grid grid = {tiles(z.rows, S::rows), division.parts};
  const auto& [scales, constants] = prepared;
  if (given.scale_columns == 1) {
    device.launch(grid, ScoreKernel<T, S, true, Epilogue>{z, given.means, scales, constants, division.part, epilogue});
  } else {
    device.launch(grid, ScoreKernel<T, S, false, Epilogue>{z, given.means, scales, constants, division.part, epilogue});
  }
}

template <class T, class Device>
void forward(Device& device, const Given<T>& given, T* marginal, T* picked, T* scores) {
  const int64_t rows = given.z.rows, classes = given.means.rows;
  const Prepared<T> prepared = prepare(device, given);
  with_shape<T>(rows, classes, device.multiprocessors(), [&](auto shape, const Division& division) {
    using Row = typename Reductions<T>::Row;
    Row* const parts = division.parts == 1 ? nullptr : device.template allocate<Row>(division.parts * rows);
    launch_scores<decltype(shape)>(
        device, given.z, given, prepared, division,
        Reductions<T>{given.choice, marginal, picked, scores, parts, rows, classes});
    if (parts != nullptr) {
      device.launch({tiles(rows, CombineKernel<T>::threads)},
                    CombineKernel<T>{parts, division.parts, rows, marginal, picked});
    }
  });
}

template <class T>
struct Gradients {
  Strided<T> marginal, scores;                   // nullptr: the scores were not kept
  Strided<T> of_marginal, of_picked, of_scores;  // nullptr where there is none
  bool with_z, with_parameters, with_weights;
  Result<T> z;
  T *means, *log_scales, *log_prior, *weights;
};

// How many rows' coefficients are kept at a time: of 10 classes a thirty-second of z, of many those of enough rows to
// fill a device; 1 to 16 MiB of float32.
inline int64_t rows_at_once(int64_t rows, int64_t classes, int64_t features) {
  const int64_t most = std::clamp(std::max(rows * features / 32, 2048 * classes), int64_t(1) << 18, int64_t(1) << 22);
  return std::max<int64_t>(most / classes / 128, 1) * 128;
}

template <class T, class Device>
void finish(Device& device, const Given<T>& given, const Prepared<T>& prepared, const Gradients<T>& grad, const T* sums,
            const T* coefficient_sums, int64_t parts) {
  const int64_t classes = given.means.rows, features = given.means.columns;
  const bool each = given.scale_rows == classes && given.scale_columns == features;
  T* const log_scales = each ? grad.log_scales : device.template allocate<T>(classes * features);
  device.launch({tiles(classes * std::max<int64_t>(features, 1), FinishKernel<T>::threads)},
                FinishKernel<T>{prepared.inverse_scales, sums, coefficient_sums, parts, classes, features, grad.means,
                                log_scales, grad.log_prior});
  if (each) return;
  device.launch({given.scale_rows * given.scale_columns},
                SumKernel<T>{log_scales, classes, features, given.scale_rows != classes,
                             given.scale_columns != features, grad.log_scales});
}

template <class T, class Device>
void backward(Device& device, const Given<T>& given, const Gradients<T>& grad, int64_t rows_of_a_pass) {
  using Together = ParameterKernel<T, true>;
  using Apart = ParameterKernel<T, false>;
  const int64_t rows = given.z.rows, classes = given.means.rows, features = given.means.columns;
  const Prepared<T> prepared = prepare(device, given);
  const int64_t pass = std::min(rows, rows_of_a_pass);
  const bool needs_coefficients = grad.with_z || grad.with_parameters;
  T* const coefficients = needs_coefficients ? device.template allocate<T>(pass * classes) : nullptr;

  const int64_t feature_tiles = std::max<int64_t>(tiles(features, Apart::features), 1);
  const int64_t class_tiles = tiles(classes, Apart::classes);
  const int64_t row_tiles = std::max<int64_t>(tiles(pass, Apart::rows), 1);
  const int64_t wanted = Apart::blocks * device.multiprocessors() / (feature_tiles * class_tiles);
  const int64_t part = tiles(row_tiles, std::clamp<int64_t>(wanted, 1, row_tiles)) * Apart::rows;
  const Grid grid = {feature_tiles, class_tiles, std::max<int64_t>(tiles(pass, part), 1)};
  T* const sums = grad.with_parameters ? device.template allocate<T>(grid.z * 2 * classes * features) : nullptr;
  T* const coefficient_sums = grad.with_parameters ? device.template allocate<T>(grid.z * classes) : nullptr;

  for (int64_t first = 0; first == 0 || first < rows; first += pass) {
    const Matrix<T> z = given.z.row_range(first, std::min(pass, rows - first));
    const Result<T> grad_z = grad.with_z ? grad.z.from_row(first) : grad.z;
    const Coefficients<T> leave = {
        given.choice.from_row(first), grad.marginal.from_row(first), grad.of_marginal.from_row(first),
        grad.of_picked.from_row(first), grad.of_scores.from_row(first), coefficients,
        grad.with_weights ? grad.weights + first * classes : nullptr, classes};
    if (grad.scores.data != nullptr) {
      using Kernel = CoefficientKernel<T>;
      device.launch({tiles(z.rows, Kernel::rows), tiles(classes, Kernel::classes)},
                    Kernel{grad.scores.from_row(first), z.rows, leave});
    } else {
      with_shape<T>(z.rows, classes, device.multiprocessors(), [&](auto shape, const Division& division) {
        launch_scores<decltype(shape)>(device, z, given, prepared, division, leave);
      });
    }
    const auto& scales = prepared.inverse_scales;
    const bool together = grad.with_z && grad.with_parameters && class_tiles == 1;
    if (together) {
      device.launch(grid, Together{z, given.means, scales, coefficients, part, first > 0, grad_z, sums,
                                   coefficient_sums});
    } else if (grad.with_parameters) {
      device.launch(grid, Apart{z, given.means, scales, coefficients, part, first > 0, grad_z, sums, coefficient_sums});
    }
    if (grad.with_z && !together) {
      using Kernel = GradZKernel<T>;
      device.launch({tiles(z.rows, Kernel::rows), tiles(features, Kernel::features)},
                    Kernel{z, given.means, scales, coefficients, grad_z});
    }
    if (pass == 0) break;
  }
  if (grad.with_parameters) finish(device, given, prepared, grad, sums, coefficient_sums, grid.z);
}

}  // namespace fastflow::gaussian

// The gradients of Gaussian class scores, from the coefficients c[b, k] = d loss / d scores[b, k] of some rows: with
// t = z - mean and w = 1 / scale^2,
//     grad_z[b, d]        = -sum_k c t w        grad_log_prior[k]     = sum_b c
//     grad_means[k, d]    =  w sum_b c t        grad_log_scales[k, d] = w sum_b c t^2 - sum_b c
#pragma once

#include "gaussian_class_scores.h"

namespace fastflow::gaussian {

// A class that cannot occur has c = 0, which times infinity would be no number.
template <class T>
FASTFLOW_DEVICE T squared(T scale) {
  constexpr T most = sizeof(T) == sizeof(float) ? T(3.4e38) : T(1.7e308);
  const T square = scale * scale;
  return square < most ? square : most;
}

// A thread owns V adjacent features of a tile of classes, whose sums over the rows stay in its registers. The lanes of
// a warp are a tile of features, the warps take R rows each at a time. Block (x, y, z) takes features x, classes y and
// part z of the rows. Where one tile holds all classes, grad_z of a row is complete and leaves in the same pass.
template <class T, bool with_z>
struct ParameterKernel {
  static constexpr int threads = 128, blocks = 3;
  static constexpr int lanes = 32, warps = threads / lanes, thread_features = sizeof(T) == sizeof(float) ? 2 : 1;
  static constexpr int features = lanes * thread_features, classes = 16, thread_rows = 8, rows = warps * thread_rows;
  static constexpr int staged = classes * rows / threads;  // coefficients that a thread fetches
  using Part = Vector<T, thread_features>;
  struct Shared {
    Part mean[classes][lanes], weight[classes][lanes];
    Vector<T, 4> coefficient[classes][rows / 4 + 1];
    Part sum[2][classes][lanes];
    T of_coefficients[threads];
  };
  Matrix<T> z, means, inverse_scales;
  const T* coefficients;  // [B, K]
  int64_t part;           // rows, a multiple of those of a tile
  bool more;              // adds to what is in the sums
  Result<T> grad_z;
  T *sums, *coefficient_sums;  // [parts, 2, K, D], [parts, K]

  template <class Block>
  FASTFLOW_DEVICE void operator()(Shared& shared, const Block& block) const {
    const int thread = block.thread(), lane = thread % lanes, warp = thread / lanes;
    const int64_t feature = block.x() * features + lane * thread_features, klass = block.y() * classes;
    const int count = int(smaller(classes, means.rows - klass));
    const int64_t first = block.z() * part, end = smaller(first + part, z.rows);
    for (int c = warp; c < classes; c += warps) {
      Part mean[1], scale[1];
      means.load(klass + c, 1, feature, mean);
      inverse_scales.load(klass + c, 1, feature, scale);
      FASTFLOW_UNROLL for (int v = 0; v < thread_features; ++v) scale[0].at[v] = squared(scale[0].at[v]);
      shared.mean[c][lane] = mean[0], shared.weight[c][lane] = scale[0];
    }
    Part of_t[classes] = {}, of_squares[classes] = {};
    T of_c = 0;
    FASTFLOW_ROLLED for (int64_t row = first; row < end; row += rows) {
      Part value[thread_rows], grad[thread_rows] = {};
      z.load(fastflow::unforeseen(row) + warp * thread_rows, 1, feature, value);
      block.barrier();
      of_c += stage(shared, row, end, klass, count, thread);
      block.barrier();
      FASTFLOW_UNROLL for (int k = 0; k < classes; ++k) {
        if (k >= count) break;
        add(shared, k, lane, warp, value, grad, of_t[k], of_squares[k]);
      }
      if constexpr (with_z) {
        FASTFLOW_UNROLL for (int r = 0; r < thread_rows; ++r) {
          const int64_t b = row + warp * thread_rows + r;
          FASTFLOW_UNROLL for (int v = 0; v < thread_features; ++v) grad[r].at[v] = -grad[r].at[v];
          if (b < end && feature < z.columns) grad_z.store(b, feature, grad[r]);
        }
      }
    }
    for (int w = 0; w < warps; ++w) {  // warp after warp: always in the same order
      block.barrier();
      if (w == 0) shared.of_coefficients[thread] = of_c;
      if (w != warp) continue;
      FASTFLOW_UNROLL for (int k = 0; k < classes; ++k) {
        FASTFLOW_UNROLL for (int v = 0; v < thread_features; ++v) {
          shared.sum[0][k][lane].at[v] = of_t[k].at[v] + (w == 0 ? T(0) : shared.sum[0][k][lane].at[v]);
          shared.sum[1][k][lane].at[v] = of_squares[k].at[v] + (w == 0 ? T(0) : shared.sum[1][k][lane].at[v]);
        }
      }
    }
    block.barrier();
    leave(shared, block, klass, count, thread);
  }

  // The coefficients of the tile of rows, 0 outside; a thread's are all of class thread % classes. Returns their sum.
  FASTFLOW_DEVICE T stage(Shared& shared, int64_t row, int64_t end, int64_t klass, int count, int thread) const {
    const int k = thread % classes;
    T sum = 0;
    FASTFLOW_UNROLL for (int n = 0; n < staged; ++n) {
      const int r = thread / classes + n * (threads / classes);
      const T c = k < count && row + r < end ? coefficients[(row + r) * means.rows + klass + k] : T(0);
      shared.coefficient[k][r / 4].at[r % 4] = c;
      sum += c;
    }
    return sum;
  }

  // Class k's share of R rows: sums of the R first, then these to the others.
  FASTFLOW_DEVICE static void add(const Shared& shared, int k, int lane, int warp, const Part (&value)[thread_rows],
                                  Part (&grad)[thread_rows], Part& of_t, Part& of_squares) {
    const Part mean = shared.mean[k][lane], weight = shared.weight[k][lane];
    Vector<T, 4> c[thread_rows / 4];
    FASTFLOW_UNROLL for (int i = 0; i < thread_rows / 4; ++i) {
      c[i] = shared.coefficient[k][warp * (thread_rows / 4) + i];
    }
    FASTFLOW_UNROLL for (int v = 0; v < thread_features; ++v) {
      T sum = 0, squares = 0;
      FASTFLOW_UNROLL for (int r = 0; r < thread_rows; ++r) {
        const T t = value[r].at[v] - mean.at[v], pull = c[r / 4].at[r % 4] * t;
        if constexpr (with_z) grad[r].at[v] = std::fma(pull, weight.at[v], grad[r].at[v]);
        sum += pull;
        squares = std::fma(pull, t, squares);
      }
      of_t.at[v] += sum, of_squares.at[v] += squares;
    }
  }

  template <class Block>
  FASTFLOW_DEVICE void leave(const Shared& shared, const Block& block, int64_t klass, int count, int thread) const {
    const int64_t all = means.rows * means.columns, first = block.x() * features;
    T* const own = sums + block.z() * 2 * all;
    for (int i = thread; i < 2 * count * features; i += threads) {
      const int which = i / (count * features), k = i / features % count, d = i % features;
      if (first + d >= means.columns) continue;
      T& to = own[which * all + (klass + k) * means.columns + first + d];
      const T sum = shared.sum[which][k][d / thread_features].at[d % thread_features];
      to = more ? to + sum : sum;
    }
    if (block.x() == 0 && thread < count) {
      T sum = 0;
      for (int i = thread; i < threads; i += classes) sum += shared.of_coefficients[i];
      T& to = coefficient_sums[block.z() * means.rows + klass + thread];
      to = more ? to + sum : sum;
    }
  }
};

// grad_z where the classes do not fit one tile, or nothing else is wanted: a thread has R rows x V features, block (x,
// y) tile x of rows and y of features. Tiles of classes pass through shared memory, each summed by itself.
template <class T>
struct GradZKernel {
  static constexpr int threads = 128, blocks = 3, lanes = 16, classes = 16;
  static constexpr int thread_features = sizeof(T) == sizeof(float) ? 4 : 2;
  static constexpr int thread_rows = sizeof(T) == sizeof(float) ? 8 : 4;
  static constexpr int features = lanes * thread_features, rows = threads / lanes * thread_rows;
  using Part = Vector<T, thread_features>;
  struct Shared {
    Part mean[classes][lanes], weight[classes][lanes];
    Vector<T, 4> coefficient[classes][rows / 4 + 1];
  };
  Matrix<T> z, means, inverse_scales;
  const T* coefficients;
  Result<T> grad_z;

  template <class Block>
  FASTFLOW_DEVICE void operator()(Shared& shared, const Block& block) const {
    const int thread = block.thread(), lane = thread % lanes, group = thread / lanes;
    const int64_t first = block.x() * rows, row = first + group * thread_rows;
    const int64_t feature = block.y() * features + lane * thread_features;
    Part value[thread_rows], grad[thread_rows] = {};
    z.load(row, 1, feature, value);
    FASTFLOW_ROLLED for (int64_t klass = 0; klass < means.rows; klass += classes) {
      const int count = int(smaller(classes, means.rows - klass));
      block.barrier();
      stage(shared, first, klass, feature, thread);
      block.barrier();
      Part sum[thread_rows] = {};
      FASTFLOW_ROLLED for (int k = 0; k < count; ++k) {
        const Part mean = shared.mean[k][lane], weight = shared.weight[k][lane];
        FASTFLOW_UNROLL for (int i = 0; i < thread_rows / 4; ++i) {
          const Vector<T, 4> c = shared.coefficient[k][group * (thread_rows / 4) + i];
          FASTFLOW_UNROLL for (int r = 0; r < 4; ++r) {
            FASTFLOW_UNROLL for (int v = 0; v < thread_features; ++v) {
              T& to = sum[4 * i + r].at[v];
              to = std::fma(c.at[r] * (value[4 * i + r].at[v] - mean.at[v]), weight.at[v], to);
            }
          }
        }
      }
      FASTFLOW_UNROLL for (int r = 0; r < thread_rows; ++r) {
        FASTFLOW_UNROLL for (int v = 0; v < thread_features; ++v) grad[r].at[v] -= sum[r].at[v];
      }
    }
    FASTFLOW_UNROLL for (int r = 0; r < thread_rows; ++r) {
      if (row + r < z.rows && feature < z.columns) grad_z.store(row + r, feature, grad[r]);
    }
  }

  FASTFLOW_DEVICE void stage(Shared& shared, int64_t row, int64_t klass, int64_t feature, int thread) const {
    constexpr int step = threads / lanes, count = classes / step;
    const int lane = thread % lanes, c = thread / lanes;
    Part mean[count], scale[count];
    means.load(klass + c, step, feature, mean);
    inverse_scales.load(klass + c, step, feature, scale);
    FASTFLOW_UNROLL for (int n = 0; n < count; ++n) {
      FASTFLOW_UNROLL for (int v = 0; v < thread_features; ++v) scale[n].at[v] = squared(scale[n].at[v]);
      shared.mean[c + n * step][lane] = mean[n], shared.weight[c + n * step][lane] = scale[n];
    }
    for (int i = thread; i < classes * rows; i += threads) {
      const int k = i % classes, r = i / classes;
      const bool inside = klass + k < means.rows && row + r < z.rows;
      shared.coefficient[k][r / 4].at[r % 4] = inside ? coefficients[(row + r) * means.rows + klass + k] : T(0);
    }
  }
};

// The parts of the sums put together in their order, a thread an element of [K, D].
template <class T>
struct FinishKernel {
  static constexpr int threads = 128, blocks = 4;
  struct Shared {};
  Matrix<T> inverse_scales;
  const T *sums, *coefficient_sums;
  int64_t parts, classes, features;
  T *grad_means, *grad_log_scales, *grad_log_prior;  // the scales' [K, D], whatever shape they have

  template <class Block>
  FASTFLOW_DEVICE void operator()(Shared&, const Block& block) const {
    const int64_t across = features > 0 ? features : 1, i = block.x() * threads + block.thread();
    const int64_t k = i / across, d = i % across, all = classes * features;
    if (k >= classes) return;
    double of_c = 0, of_t = 0, of_squares = 0;
    for (int64_t part = 0; part < parts; ++part) of_c += coefficient_sums[part * classes + k];
    if (d == 0) grad_log_prior[k] = T(of_c);
    if (features == 0) return;
    for (int64_t part = 0; part < parts; ++part) {
      of_t += sums[part * 2 * all + i];
      of_squares += sums[part * 2 * all + all + i];
    }
    const T scale = static_cast<const T*>(inverse_scales.data)[k * inverse_scales.row + d * inverse_scales.column];
    const double weight = squared(scale);
    grad_means[i] = T(weight * of_t);
    grad_log_scales[i] = T(weight * of_squares - of_c);
  }
};

// [K, D] summed to the shape of log_scales, a block an element of that.
template <class T>
struct SumKernel {
  static constexpr int threads = 128, blocks = 4;
  struct Shared {
    double sum[threads];
  };
  const T* from;
  int64_t classes, features;
  bool shared_by_classes, shared_by_features;
  T* to;

  template <class Block>
  FASTFLOW_DEVICE void operator()(Shared& shared, const Block& block) const {
    const int64_t columns = shared_by_features ? 1 : features;
    const int64_t k = block.x() / columns, d = block.x() % columns;
    const int64_t across = shared_by_features ? features : 1, count = across * (shared_by_classes ? classes : 1);
    double sum = 0;
    for (int64_t i = block.thread(); i < count; i += threads) sum += from[(k + i / across) * features + d + i % across];
    shared.sum[block.thread()] = sum;
    for (int half = threads / 2; half > 0; half /= 2) {
      block.barrier();
      if (block.thread() < half) shared.sum[block.thread()] += shared.sum[block.thread() + half];
    }
    if (block.thread() == 0) to[block.x()] = T(shared.sum[0]);
  }
};

}  // namespace fastflow::gaussian

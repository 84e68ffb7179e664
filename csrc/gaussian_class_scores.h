// The scores of Gaussian classes by tiles of rows x classes, for a GPU, or for a test on the host. A kernel here is a
// struct: its arguments, what a block shares, and the body that each thread of a block runs.
#pragma once

#include <cmath>

#include "matrix.h"

namespace fastflow::gaussian {

constexpr double half_log_two_pi = 0.91893853320467274178;

FASTFLOW_HOST_DEVICE inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// The inverse scales, as they are shared, and of each class what its score has besides the energy
// sum_d ((z - mean) / scale)^2 / 2. A block a class.
template <class T>
struct PrepareKernel {
  static constexpr int threads = 128, blocks = 4;
  struct Shared {
    double sum[threads];
  };
  Strided<T> log_scales, log_prior;
  int64_t classes, features, scale_rows, scale_columns;
  T *inverse_scales, *constants;

  template <class Block>
  FASTFLOW_DEVICE void operator()(Shared& shared, const Block& block) const {
    const int64_t klass = block.x(), row = scale_rows == 1 ? 0 : klass;
    double sum = 0;
    for (int64_t d = block.thread(); d < scale_columns; d += threads) {
      const T log_scale = log_scales.at(row, d);
      sum += log_scale;
      if (klass < scale_rows) inverse_scales[klass * scale_columns + d] = std::exp(-log_scale);
    }
    shared.sum[block.thread()] = sum;
    for (int half = threads / 2; half > 0; half /= 2) {
      block.barrier();
      if (block.thread() < half) shared.sum[block.thread()] += shared.sum[block.thread() + half];
    }
    if (block.thread() == 0) {
      const double log_det = shared.sum[0] * (scale_columns == 1 ? features : 1);
      constants[klass] = T(log_prior.at(klass) - log_det - half_log_two_pi * features);
    }
  }
};

// How 128 threads share a tile: a thread has R rows, C classes and every FeatureLanes-th group of four features of the
// `width` that lie in shared memory. Rows and classes of a thread are those of its lane, Lanes apart.
template <int R, int C, int RowLanes, int ClassLanes, int FeatureLanes, int Width, int Blocks>
struct Shape {
  static constexpr int thread_rows = R, thread_classes = C, row_lanes = RowLanes, class_lanes = ClassLanes;
  static constexpr int feature_lanes = FeatureLanes, width = Width, blocks = Blocks;
  static constexpr int rows = R * RowLanes, classes = C * ClassLanes, threads = RowLanes * ClassLanes * FeatureLanes;
  static constexpr int fours = Width / 4;
};
template <class T>
struct Shapes {  // 16 classes see z once; with more of them, 8 x 4 scores are what reads of shared memory are shared by
  using Few = Shape<4, 8, 16, 2, 4, 64, 4>;
  using Many = Shape<8, 4, 16, 8, 1, 32, 3>;
};
template <>
struct Shapes<double> {
  using Few = Shape<2, 8, 16, 2, 4, 32, 3>;
  using Many = Shape<4, 4, 16, 8, 1, 16, 3>;
};

// What an epilogue sees: count rows x classes scores, the first of them row `row` and class `klass`.
template <class T, class S>
struct ScoreTile {
  static constexpr int threads = S::threads;
  const T (&energy)[S::feature_lanes][S::rows][S::classes + 1];
  const T* constants;
  int64_t row, klass;
  int rows, classes;

  FASTFLOW_DEVICE T score(int i, int j) const {
    T sum = energy[0][i][j];
    FASTFLOW_UNROLL for (int lane = 1; lane < S::feature_lanes; ++lane) sum += energy[lane][i][j];
    return constants[klass + j] - sum;
  }
};

// Block (x, y) takes the tile of rows x through the classes of part y. The features of a chunk are summed by
// themselves, then added: an error grows with the number of chunks. An isotropic class has one scale, applied to the
// sum.
template <class T, class S, bool isotropic, class Epilogue>
struct ScoreKernel {
  static constexpr int threads = S::threads, blocks = S::blocks;
  static constexpr int step = threads / S::fours;  // rows that the threads load at a time
  using Four = Vector<T, 4>;
  struct Chunk {  // one group more than the chunk keeps adjacent rows in different banks
    Four z[S::rows][S::fours + 1], mean[S::classes][S::fours + 1], scale[isotropic ? 1 : S::classes][S::fours + 1];
  };
  union Shared {
    Chunk chunk;
    T energy[S::feature_lanes][S::rows][S::classes + 1];
  };
  Matrix<T> z, means, inverse_scales;  // the last one [K, D] by its strides, its columns alike if isotropic
  const T* constants;
  int64_t part;  // classes, a multiple of those of a tile
  Epilogue epilogue;

  template <class Block>
  FASTFLOW_DEVICE void operator()(Shared& shared, const Block& block) const {
    const int thread = block.thread();
    const int64_t row = block.x() * S::rows, first = block.y() * part, end = smaller(first + part, means.rows);
    typename Epilogue::Row state = {};
    for (int64_t klass = first; klass < end; klass += S::classes) {
      const int classes = int(smaller(S::classes, end - klass));
      T total[S::thread_rows][S::thread_classes] = {};
      for (int64_t feature = 0; feature < z.columns; feature += S::width) {
        block.barrier();
        load(shared.chunk, row, klass, feature, thread);
        block.barrier();
        add(shared.chunk, (classes + S::class_lanes - 1) / S::class_lanes, thread, total);
      }
      block.barrier();
      leave(shared.energy, klass, thread, total);
      block.barrier();
      const int rows = int(smaller(S::rows, z.rows - row));
      epilogue.take(ScoreTile<T, S>{shared.energy, constants, row, klass, rows, classes}, state, thread);
    }
    epilogue.finish(state, row, block.y(), thread, S::rows);
  }

  FASTFLOW_DEVICE static int class_lane(int thread) { return thread % S::class_lanes; }
  FASTFLOW_DEVICE static int feature_lane(int thread) { return thread / S::class_lanes % S::feature_lanes; }
  FASTFLOW_DEVICE static int row_lane(int thread) { return thread / (S::class_lanes * S::feature_lanes); }

  FASTFLOW_DEVICE void load(Chunk& chunk, int64_t row, int64_t klass, int64_t feature, int thread) const {
    const int i = thread / S::fours, j = thread % S::fours;
    Four values[S::rows / step], mean[S::classes / step], scale[S::classes / step];
    z.load(row + i, step, feature + 4 * j, values);
    means.load(klass + i, step, feature + 4 * j, mean);
    if constexpr (!isotropic) inverse_scales.load(klass + i, step, feature + 4 * j, scale);
    FASTFLOW_UNROLL for (int n = 0; n < S::rows / step; ++n) chunk.z[i + n * step][j] = values[n];
    FASTFLOW_UNROLL for (int n = 0; n < S::classes / step; ++n) {
      chunk.mean[i + n * step][j] = mean[n];
      if constexpr (!isotropic) chunk.scale[i + n * step][j] = scale[n];
    }
  }

  // Adds the sums of squares of the chunk. `count` classes of each thread exist.
  FASTFLOW_DEVICE static void add(const Chunk& chunk, int count, int thread,
                                  T (&total)[S::thread_rows][S::thread_classes]) {
    T sum[S::thread_rows][S::thread_classes] = {};
    const int row = row_lane(thread), klass = class_lane(thread);
    FASTFLOW_ROLLED for (int j = feature_lane(thread); j < S::fours; j += S::feature_lanes) {
      Four value[S::thread_rows];
      FASTFLOW_UNROLL for (int r = 0; r < S::thread_rows; ++r) value[r] = chunk.z[row + r * S::row_lanes][j];
      FASTFLOW_UNROLL for (int c = 0; c < S::thread_classes; ++c) {
        if (c >= count) break;
        const Four mean = chunk.mean[klass + c * S::class_lanes][j];
        Four scale;
        if constexpr (!isotropic) scale = chunk.scale[klass + c * S::class_lanes][j];
        FASTFLOW_UNROLL for (int r = 0; r < S::thread_rows; ++r) {
          FASTFLOW_UNROLL for (int m = 0; m < 4; ++m) {
            T distance = value[r].at[m] - mean.at[m];
            if constexpr (!isotropic) distance *= scale.at[m];
            sum[r][c] = std::fma(distance, distance, sum[r][c]);
          }
        }
      }
    }
    FASTFLOW_UNROLL for (int r = 0; r < S::thread_rows; ++r) {
      FASTFLOW_UNROLL for (int c = 0; c < S::thread_classes; ++c) total[r][c] += sum[r][c];
    }
  }

  FASTFLOW_DEVICE void leave(T (&energy)[S::feature_lanes][S::rows][S::classes + 1], int64_t klass, int thread,
                             const T (&total)[S::thread_rows][S::thread_classes]) const {
    FASTFLOW_UNROLL for (int c = 0; c < S::thread_classes; ++c) {
      const int j = class_lane(thread) + c * S::class_lanes;
      T scale = 1;
      if (isotropic && klass + j < means.rows) {
        scale = static_cast<const T*>(inverse_scales.data)[(klass + j) * inverse_scales.row];
      }
      FASTFLOW_UNROLL for (int r = 0; r < S::thread_rows; ++r) {
        energy[feature_lane(thread)][row_lane(thread) + r * S::row_lanes][j] = T(0.5) * total[r][c] * scale * scale;
      }
    }
  }
};

// Which scores `picked` adds up, and how much of each.
template <class T>
struct Choice {
  Strided<int64_t> labels;  // [B], negative where there is none
  Strided<T> weights;       // [B, K]

  FASTFLOW_DEVICE int64_t label(int64_t row) const { return labels.data == nullptr ? -1 : labels.at(row); }
  Choice from_row(int64_t row) const { return {labels.from_row(row), weights.from_row(row)}; }
};

// A class of weight 0 contributes 0 even where its score is -inf.
template <class T>
FASTFLOW_DEVICE T moved(T weight, T score) {
  return weight == 0 && score == -INFINITY ? T(0) : score;
}

// sum exp(scores) as sum exp(top), which does not overflow; all scores may be -inf.
template <class T>
struct LogSum {
  T top = -INFINITY, sum = 0;

  FASTFLOW_DEVICE T base() const { return top == -INFINITY ? T(0) : top; }
  FASTFLOW_DEVICE void raise(T score) {
    if (!(score > top)) return;
    sum *= std::exp(top - score);
    top = score;
  }
  FASTFLOW_DEVICE void add(T score) { sum += std::exp(score - base()); }
  FASTFLOW_DEVICE T value() const { return base() + std::log(sum); }
};

// The forward pass: one thread a row goes through its scores.
template <class T>
struct Reductions {
  struct Row {
    LogSum<T> marginal;
    T picked = 0;
  };
  Choice<T> choice;
  T *marginal, *picked, *scores;  // scores nullptr unless asked for
  Row* parts;                     // [parts, B], nullptr if one part has all classes
  int64_t rows, classes;

  template <class Tile>
  FASTFLOW_DEVICE void take(const Tile& tile, Row& row, int thread) const {
    if (thread < tile.rows) {
      T top = row.marginal.top;
      for (int j = 0; j < tile.classes; ++j) top = tile.score(thread, j) > top ? tile.score(thread, j) : top;
      row.marginal.raise(top);
      const int64_t b = tile.row + thread, label = choice.label(b);
      T picked = 0;
      for (int j = 0; j < tile.classes; ++j) {
        const T score = tile.score(thread, j);
        row.marginal.add(score);
        if (label >= 0) {
          if (label == tile.klass + j) picked = score;
        } else if (choice.weights.data != nullptr) {
          const T weight = choice.weights.at(b, tile.klass + j);
          picked += weight * moved(weight, score);
        }
      }
      row.picked += picked;
    }
    if (scores == nullptr) return;
    for (int i = thread; i < tile.rows * tile.classes; i += Tile::threads) {
      const int r = i / tile.classes, c = i % tile.classes;
      scores[(tile.row + r) * classes + tile.klass + c] = tile.score(r, c);
    }
  }

  FASTFLOW_DEVICE void finish(const Row& row, int64_t first_row, int64_t part, int thread, int tile_rows) const {
    const int64_t b = first_row + thread;
    if (thread >= tile_rows || b >= rows) return;
    if (parts != nullptr) {
      parts[part * rows + b] = row;
    } else {
      marginal[b] = row.marginal.value();
      picked[b] = row.picked;
    }
  }
};

// The classes of a row in parts, put together in their order.
template <class T>
struct CombineKernel {
  static constexpr int threads = 128, blocks = 4;
  struct Shared {};
  using Row = typename Reductions<T>::Row;
  const Row* parts;
  int64_t count, rows;
  T *marginal, *picked;

  template <class Block>
  FASTFLOW_DEVICE void operator()(Shared&, const Block& block) const {
    const int64_t b = block.x() * threads + block.thread();
    if (b >= rows) return;
    Row whole = {};
    for (int64_t part = 0; part < count; ++part) {
      const Row row = parts[part * rows + b];
      whole.marginal.raise(row.marginal.top);
      whole.marginal.sum += row.marginal.sum * std::exp(row.marginal.top - whole.marginal.base());
      whole.picked += row.picked;
    }
    marginal[b] = whole.marginal.value();
    picked[b] = whole.picked;
  }
};

}  // namespace fastflow::gaussian

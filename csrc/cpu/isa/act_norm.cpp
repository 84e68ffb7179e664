// act_norm and its backward for one instruction set; formulas as in fastflow/ops/act_norm.py.
#include "cpu/act_norm.h"

#include "blocks.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

template <class T>
void parameters(const ActNormParameters& op, int64_t channels) {
  T* const factor = static_cast<T*>(op.values);
  pack(factor + channels, op.shift.data, op.shift.dtype, {1, channels, 0, op.shift.row_stride});
  constexpr int64_t part = 64;
  double log_scale[part], sum = 0;
  for (int64_t first = 0; first < channels; first += part) {
    const int64_t count = smaller(part, channels - first), stride = op.log_scale.row_stride;
    const int64_t offset = first * stride * bytes_of[op.log_scale.dtype];
    pack(log_scale, op.log_scale.data + offset, op.log_scale.dtype, {1, count, 0, stride});
    for (int64_t c = 0; c < count; ++c) {
      sum += log_scale[c];
      factor[first + c] = static_cast<T>(op.inverse ? -log_scale[c] : log_scale[c]);
    }
  }
  for (int64_t c = 0; c < channels; c += width<T>) {
    const SomeLanes<T> lanes(nullptr, channels - c);
    lanes.write(factor + c, exp<T>(lanes.read(factor + c)));
  }
  *op.sum = sum;
}

// Tiles come by value: no store can alias them.
template <class T, bool subtracts>
void forward_rows(Tile<T> tile, int64_t channels) {
  for (int64_t o = 0; o < tile.outer; ++o) {
    const TileRow<T> row = {tile, o};
    const T *const x = row.at(X), *const factor = row.at(GAIN), *const shift = factor + channels;
    T* const z = row.at(Z);
    const auto each = [&](int64_t i, auto lanes, Vec<T> f, Vec<T> t) {
      const Vec<T> v = lanes.read(x + i);
      lanes.write(z + i, subtracts ? (v - t) * f : v * f + t);
    };
    if (tile.constant_gain) {
      const Vec<T> f = splat(*factor), t = splat(*shift);
      row.template for_each_vector<false>([&](int64_t i, auto lanes) { each(i, lanes, f, t); });
    } else {
      row.template for_each_vector<false>(
          [&](int64_t i, auto lanes) { each(i, lanes, lanes.read(factor + i), lanes.read(shift + i)); });
    }
  }
}

template <class T>
void forward(const ActNorm& op, int64_t first_row, int64_t last_row) {
  const auto* running = static_cast<const T*>(op.log_det);
  auto* const log_det = static_cast<T*>(op.log_det_out);
  const T own = static_cast<T>(op.own_log_det);
  for (int64_t row = first_row; row < last_row; ++row) {
    log_det[row] = own + (running == nullptr ? 0 : running[row * op.log_det_stride]);
  }
  Tiles<T> tiles(op);
  tiles.for_each(first_row, last_row - first_row, [&](const Tile<T>& tile, int64_t) {
    op.subtracts ? forward_rows<T, true>(tile, op.channels) : forward_rows<T, false>(tile, op.channels);
  });
}

constexpr int run_length = 16;  // vectors that are added in T before they go to a sum in double

template <class T>
struct Sums {
  Vec<T> grad_z = {}, product = {};

  FASTFLOW_INLINE void add(Vec<T> g, Vec<T> w) {
    grad_z += g;
    product += g * w;
  }
};

template <class T>
FASTFLOW_INLINE void add_lanes(double* sums, Vec<T> run, int count) {
  T lane[width<T>];
  store(lane, run);
  for (int i = 0; i < count; ++i) sums[i] += lane[i];
}

template <class T>
FASTFLOW_INLINE void add_all(double& sum, Vec<T> run) {
  T lane[width<T>];
  store(lane, run);
  double parts[width<T>];
  for (int i = 0; i < width<T>; ++i) parts[i] = lane[i];
#pragma GCC unroll 4
  for (int half = width<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) parts[i] += parts[half + i];
  }
  sum += parts[0];
}

// Every row of the tile belongs to one channel.
template <class T, bool shifted>
void backward_channels(Tile<T> tile, int64_t channels, const T* factors, double* sums) {
  for (int64_t o = 0; o < tile.outer; ++o) {
    const TileRow<T> row = {tile, o};
    const T *const grad_z = row.at(X), *const saved = row.at(SAVED), *const factor = row.at(GAIN);
    T* const grad_x = row.at(Z);
    double* const sum = sums + (factor - factors);
    const Vec<T> f = splat(*factor), t = splat(factor[channels]);
    Sums<T> run;
    int pending = 0;
    const auto flush = [&] {
      add_all<T>(sum[0], run.grad_z);
      add_all<T>(sum[channels], run.product);
      run = {};
      pending = 0;
    };
    row.template for_each_vector<false>([&](int64_t i, auto lanes) {
      const Vec<T> g = lanes.read(grad_z + i), y = lanes.read(saved + i);
      lanes.write(grad_x + i, g * f);
      run.add(g, lanes.active(shifted ? y - t : y, Vec<T>{}));
      if (++pending == run_length) flush();
    });
    flush();
  }
}

// Every column of the tile belongs to one channel.
template <class T, bool shifted>
void backward_columns(Tile<T> tile, int64_t channels, const T* factors, double* sums) {
  for (int64_t first = 0; first < tile.outer; first += run_length) {
    const int64_t rows = smaller(run_length, tile.outer - first);
    const TileRow<T> row = {tile, first};
    const T *const grad_z = row.at(X), *const saved = row.at(SAVED), *const factor = row.at(GAIN);
    T* const grad_x = row.at(Z);
    double* const sum = sums + (factor - factors);
    row.template for_each_vector<false>([&](int64_t i, auto lanes) {
      const Vec<T> f = lanes.read(factor + i), t = lanes.read(factor + channels + i);
      Sums<T> run;
      for (int64_t r = 0; r < rows; ++r) {
        const Vec<T> g = lanes.read(grad_z + r * tile.pitch[X] + i), y = lanes.read(saved + r * tile.pitch[SAVED] + i);
        lanes.write(grad_x + r * tile.pitch[Z] + i, g * f);
        run.add(g, shifted ? y - t : y);
      }
      const int count = static_cast<int>(smaller(width<T>, tile.inner - i));
      add_lanes<T>(sum + i, run.grad_z, count);
      add_lanes<T>(sum + channels + i, run.product, count);
    });
  }
}

template <class T, bool shifted>
void backward_tile(const Tile<T>& tile, const ActNormBackward& op) {
  const T* const factors = reinterpret_cast<const T*>(op.operand[GAIN].data);
  const auto run = tile.constant_gain ? backward_channels<T, shifted> : backward_columns<T, shifted>;
  run(tile, op.channels, factors, op.sums);
}

template <class T>
void backward(const ActNormBackward& op, int64_t first_row, int64_t last_row) {
  Tiles<T> tiles(op);
  tiles.for_each(first_row, last_row - first_row, [&](const Tile<T>& tile, int64_t) {
    op.shifted ? backward_tile<T, true>(tile, op) : backward_tile<T, false>(tile, op);
  });
}

}  // namespace

void act_norm_parameters(const ActNormParameters& op, int64_t, int64_t channels) {
  op.in_double ? parameters<double>(op, channels) : parameters<float>(op, channels);
}

void act_norm(const ActNorm& op, int64_t first_row, int64_t last_row) {
  op.in_double ? forward<double>(op, first_row, last_row) : forward<float>(op, first_row, last_row);
}

void act_norm_backward(const ActNormBackward& op, int64_t first_row, int64_t last_row) {
  op.in_double ? backward<double>(op, first_row, last_row) : backward<float>(op, first_row, last_row);
}

}  // namespace fastflow::FASTFLOW_ISA

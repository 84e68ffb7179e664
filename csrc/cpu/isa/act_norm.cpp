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

template <bool subtracts, class V>
FASTFLOW_INLINE V affine(V v, V factor, V shift) {
  return subtracts ? (v - shift) * factor : v * factor + shift;
}

// With `streams`, vectors go past the caches: those of a large output would only drive out what is still needed.
template <bool streams, class T>
FASTFLOW_INLINE void write(AllLanes<T> lanes, T* to, Vec<T> v) {
  streams ? stream(to, v) : lanes.write(to, v);
}
template <bool streams, class T>
FASTFLOW_INLINE void write(SomeLanes<T> lanes, T* to, Vec<T> v) {
  lanes.write(to, v);
}

// 32 MB and the input: more than most L3 caches, or a core's share of one, hold.
template <class T>
bool may_stream(const RowOp& op, const Tile<T>& tile) {
  const int64_t bytes = op.rows * elements_of_row(op) * bytes_of[native<T>];
  const int64_t places = reinterpret_cast<int64_t>(tile.data[Z]) | tile.pitch[Z] * bytes_of[native<T>];
  const bool aligned = tile.constant_gain || places % register_bytes == 0;
  return bytes >= (1 << 25) && op.operand[Z].dtype == native<T> && aligned;
}

// Calls step(i, lanes) for each vector of `count` elements; those of all lanes are aligned in `to`, for a store across
// two cache lines costs two.
template <class T, class Step>
FASTFLOW_INLINE void for_each_aligned(const T* to, int64_t count, Step step) {
  int64_t i = smaller(count, -(reinterpret_cast<int64_t>(to) / int64_t{sizeof(T)}) & (width<T> - 1));
  if (i > 0) step(0, SomeLanes<T>(nullptr, i));
  for (; i + width<T> <= count; i += width<T>) step(i, AllLanes<T>{});
  if (i < count) step(i, SomeLanes<T>(nullptr, count - i));
}

// Tiles come by value: no store can alias them. Every row of the tile belongs to one channel.
template <class T, bool subtracts, bool streams>
void forward_channels(Tile<T> tile, int64_t channels) {
  for (int64_t o = 0; o < tile.outer; ++o) {
    const TileRow<T> row = {tile, o};
    const T *const x = row.at(X), *const factor = row.at(GAIN);
    T* const z = row.at(Z);
    const Vec<T> f = splat(*factor), t = splat(factor[channels]);
    for_each_aligned(z, tile.inner, [&](int64_t i, auto lanes) {
      write<streams>(lanes, z + i, affine<subtracts>(lanes.read(x + i), f, t));
    });
  }
}

// Every column of the tile belongs to one channel.
template <class T, bool subtracts, bool streams>
void forward_columns(Tile<T> tile, int64_t channels) {
  const T *const factor = tile.data[GAIN], *const shift = factor + channels;
  for (int64_t o = 0; o < tile.outer; ++o) {
    const TileRow<T> row = {tile, o};
    const T* const x = row.at(X);
    T* const z = row.at(Z);
    row.template for_each_vector<false>([&](int64_t i, auto lanes) {
      const Vec<T> f = lanes.read(factor + i), t = lanes.read(shift + i);
      write<streams>(lanes, z + i, affine<subtracts>(lanes.read(x + i), f, t));
    });
  }
}

template <class T, bool subtracts>
void forward_tile(const ActNorm& op, const Tile<T>& tile) {
  const bool streams = may_stream(op, tile);
  if (tile.constant_gain) {
    (streams ? forward_channels<T, subtracts, true> : forward_channels<T, subtracts, false>)(tile, op.channels);
  } else {
    (streams ? forward_columns<T, subtracts, true> : forward_columns<T, subtracts, false>)(tile, op.channels);
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
    op.subtracts ? forward_tile<T, true>(op, tile) : forward_tile<T, false>(op, tile);
  });
  finish_streams();
}

constexpr int run_length = 16;  // vectors or rows that are added in T before their sum is added in double

template <class T>
FASTFLOW_INLINE void add_lanes(double& sum, Vec<T> run) {
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

// Every row of the tile belongs to one channel. `sums` are those of grad_z.
template <class T, bool shifted, bool streams>
void backward_channels(Tile<T> tile, int64_t channels, const T* factors, double* sums) {
  for (int64_t o = 0; o < tile.outer; ++o) {
    const TileRow<T> row = {tile, o};
    const T *const grad_z = row.at(X), *const saved = row.at(SAVED), *const factor = row.at(GAIN);
    T* const grad_x = row.at(Z);
    double* const sum = sums + (factor - factors);
    const Vec<T> f = splat(*factor), t = splat(factor[channels]);
    Vec<T> of_grad_z = {}, of_product = {};
    int pending = 0;
    const auto flush = [&] {
      add_lanes<T>(sum[0], of_grad_z);
      add_lanes<T>(sum[channels], of_product);
      of_grad_z = of_product = Vec<T>{};
      pending = 0;
    };
    for_each_aligned(grad_x, tile.inner, [&](int64_t i, auto lanes) {
      const Vec<T> g = lanes.read(grad_z + i), y = lanes.read(saved + i);
      write<streams>(lanes, grad_x + i, g * f);
      of_grad_z += g;
      of_product += lanes.active(g * (shifted ? y - t : y), Vec<T>{});
      if (++pending == run_length) flush();
    });
    flush();
  }
}

constexpr int64_t panel = 1024;  // columns whose sums fit the L1 beside what is read and written

// Every column of the tile, of at most `panel`, belongs to one channel; the rows are at most `run_length`.
template <class T, bool shifted, bool streams>
void backward_columns(Tile<T> tile, int64_t channels, double* sums) {
  alignas(64) T of_grad_z[panel], of_product[panel];
  for (int64_t i = 0; i < tile.inner; i += width<T>) {
    store(of_grad_z + i, Vec<T>{});
    store(of_product + i, Vec<T>{});
  }
  for (int64_t o = 0; o < tile.outer; ++o) {
    const TileRow<T> row = {tile, o};
    const T *const grad_z = row.at(X), *const saved = row.at(SAVED), *const factor = row.at(GAIN);
    T* const grad_x = row.at(Z);
    row.template for_each_vector<false>([&](int64_t i, auto lanes) {
      const Vec<T> g = lanes.read(grad_z + i), y = lanes.read(saved + i);
      write<streams>(lanes, grad_x + i, g * lanes.read(factor + i));
      store(of_grad_z + i, load(of_grad_z + i) + g);
      const Vec<T> w = shifted ? y - lanes.read(factor + channels + i) : y;
      store(of_product + i, load(of_product + i) + g * w);
    });
  }
  for (int64_t i = 0; i < tile.inner; ++i) sums[i] += of_grad_z[i];
  for (int64_t i = 0; i < tile.inner; ++i) sums[channels + i] += of_product[i];
}

template <class T, bool shifted, bool streams>
void backward_tile(const ActNormBackward& op, const Tile<T>& tile) {
  const T* const factors = reinterpret_cast<const T*>(op.operand[GAIN].data);
  if (tile.constant_gain) return backward_channels<T, shifted, streams>(tile, op.channels, factors, op.sums);
  for (int64_t first = 0; first < tile.outer; first += run_length) {
    for (int64_t column = 0; column < tile.inner; column += panel) {
      Tile<T> part = tile;
      part.outer = smaller(run_length, tile.outer - first);
      part.inner = smaller(panel, tile.inner - column);
      for (const Role role : {X, SAVED, GAIN, Z}) part.data[role] += first * tile.pitch[role] + column;
      backward_columns<T, shifted, streams>(part, op.channels, op.sums + (part.data[GAIN] - factors));
    }
  }
}

template <class T, bool shifted>
void backward_tile(const ActNormBackward& op, const Tile<T>& tile) {
  may_stream(op, tile) ? backward_tile<T, shifted, true>(op, tile) : backward_tile<T, shifted, false>(op, tile);
}

template <class T>
void backward(const ActNormBackward& op, int64_t first_row, int64_t last_row) {
  Tiles<T> tiles(op);
  tiles.for_each(first_row, last_row - first_row, [&](const Tile<T>& tile, int64_t) {
    op.shifted ? backward_tile<T, true>(op, tile) : backward_tile<T, false>(op, tile);
  });
  finish_streams();
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

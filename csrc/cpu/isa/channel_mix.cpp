// channel_mix and its backward for one instruction set; see csrc/cpu/channel_mix.cpp for what they cost.
//
// Where pixels lie side by side, a lane is a pixel and the matrix's entries are broadcast; where channels do, a lane is a
// channel of z and those of x are broadcast.
#include "cpu/channel_mix.h"

#include "multiply.h"
#include "pixels.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

// The matrix as the loops want it: for planes its rows in parts of most_rows, side by side in a part; for lines its
// transpose, padded to whole vectors.
template <class T>
class Matrix {
 public:
  Matrix(const ChannelMix& op, bool transposed) : channels_(op.channels), shift_(op.shift, op.channels) {
    const T* const from = static_cast<const T*>(op.matrix);
    const auto at = [&](int row, int column) {
      return transposed ? from[column * channels_ + row] : from[row * channels_ + column];
    };
    if (op.channels_last) {
      for (int k = 0; k < channels_; ++k) {
        for (int n = 0; n < pitch(); ++n) entries_[k * pitch() + n] = n < channels_ ? at(n, k) : 0;
      }
    } else {
      in_parts<most_rows>(channels_, [&](auto rows, int first) {
        T* const part = entries_ + first * channels_;
        for (int k = 0; k < channels_; ++k) {
          for (int m = 0; m < rows; ++m) part[k * rows + m] = at(first + m, k);
        }
      });
    }
  }

  // What the last vectors hold twice, where a row is no multiple of them, is computed twice. `also` is what comes after.
  void multiply_planes(const Planes<T>& x, const ChannelVector<T>& center, const Planes<T>& z,
                       const Planes<T>* also = nullptr) const {
    const auto read = [](const T* from, int v) { return load(from + v * width<T>); };
    const auto write = [](T* to, Vec<T> value, int v) { store(to + v * width<T>, value); };
    for (int64_t p = 0; p < x.count;) {
      const int64_t left = x.count - p;
      x.template prefetch<false>(p);
      z.template prefetch<true>(p);
      if (also != nullptr) also->template prefetch<false>(p);
      if (left > width<T> && x.count >= 2 * width<T>) {
        on_lanes<2>(x, center, z, smaller(p, x.count - 2 * width<T>), read, write);
        p += 2 * width<T>;
      } else if (x.count >= width<T>) {
        on_lanes<1>(x, center, z, smaller(p, x.count - width<T>), read, write);
        p += width<T>;
      } else {
        const int lanes = static_cast<int>(left);
        on_lanes<1>(x, center, z, p, [=](const T* from, int) { return load(from, lanes); },
                    [=](T* to, Vec<T> value, int) { store(to, value, lanes); });
        p += lanes;
      }
    }
  }

  void multiply_lines(const Lines<T>& x, const Lines<T>& z) const {
    constexpr int most_vectors = register_bytes == 64 ? 4 : 2;
    const int vectors = vectors_of<T>(channels_);
    in_parts<most_vectors>(vectors, [&](auto each, int first) {
      const int lanes = first + each.value == vectors ? z.last_lanes : width<T>;
      for (int64_t p = 0; p < x.count;) {
        const int left = static_cast<int>(smaller(x.count - p, 6));
        in_parts<6>(left, [&](auto pixels, int r) { on_pixels<pixels.value, each.value>(x, z, p + r, first, lanes); });
        p += left;
      }
    });
  }

 private:
  int pitch() const { return vectors_of<T>(channels_) * width<T>; }

  template <int vectors, class Read, class Write>
  FASTFLOW_INLINE void on_lanes(const Planes<T>& x, const ChannelVector<T>& center, const Planes<T>& z, int64_t p,
                                Read read, Write write) const {
    in_parts<most_rows>(channels_, [&](auto outputs, int first) {
      constexpr int rows = outputs.value;
      const T* const part = entries_ + first * channels_;
      Vec<T> sum[rows][vectors];
      for (int m = 0; m < rows; ++m) {
        for (int v = 0; v < vectors; ++v) sum[m][v] = splat<T>(shift_.of[first + m]);
      }
      multiply<rows, vectors, T>(
          sum, channels_, [&](int m, int64_t k) { return part[k * rows + m]; },
          [&](int64_t k, int v) { return read(x.channel[k] + p, v) - splat(center.of[k]); });
      for (int m = 0; m < rows; ++m) {
        for (int v = 0; v < vectors; ++v) write(z.channel[first + m] + p, sum[m][v], v);
      }
    });
  }

  template <int rows, int vectors>
  FASTFLOW_INLINE void on_pixels(const Lines<T>& x, const Lines<T>& z, int64_t p, int first, int lanes) const {
    const T *const entries = entries_ + first * width<T>, *const from = x.data + p * x.pitch;
    const int64_t matrix_pitch = pitch(), x_pitch = x.pitch;
    T* const to = z.data + p * z.pitch + first * width<T>;
    Vec<T> sum[rows][vectors];
    for (int m = 0; m < rows; ++m) {
      for (int v = 0; v < vectors; ++v) sum[m][v] = load(shift_.of + (first + v) * width<T>);
    }
    multiply<rows, vectors, T>(
        sum, channels_, [&](int m, int64_t k) { return from[m * x_pitch + k]; },
        [&](int64_t k, int v) { return load(entries + k * matrix_pitch + v * width<T>); });
    for (int m = 0; m < rows; ++m) {
      T* const pixel = to + m * z.pitch;
      for (int v = 0; v < vectors - 1; ++v) store<T>(pixel + v * width<T>, sum[m][v]);
      T* const last = pixel + (vectors - 1) * width<T>;
      lanes == width<T> ? store(last, sum[m][vectors - 1]) : store(last, sum[m][vectors - 1], lanes);
    }
  }

  int channels_;
  alignas(64) T entries_[most_channels * most_channels];
  ChannelVector<T> shift_;
};

// The gradients of matrix and shift. Numbers of T are summed up to 256 at a time, the rest in double.
template <class T>
class Sums {
 public:
  explicit Sums(const ChannelMix& op)
      : matrix_(op.sums), shift_(op.sums + op.channels * op.channels), lanes_(static_cast<Vec<T>*>(op.lanes)),
        channels_(op.channels) {}

  // Every lane sums for itself until `finish`, for joining lanes costs as much as many pixels. A block of the matrix has
  // as many entries as a vector has lanes.
  void add(const Planes<T>& grad_z, const Planes<T>& x, const ChannelVector<T>& center) {
    Vec<T>* block = lanes_;
    for (int i = 0; i < channels_; i += rows) {
      for (int j = 0; j < channels_; j += columns, block += width<T>) {
        Vec<T> sum[width<T>];
        for (int n = 0; n < width<T>; ++n) sum[n] = pending_ > 0 ? block[n] : Vec<T>{};
        over_vectors(x.count, [&](int64_t p, auto read) {
          Vec<T> right[columns];
          for (int n = 0; n < columns; ++n) right[n] = read(x.channel[inside(j + n)] + p) - splat(center.of[inside(j + n)]);
          for (int m = 0; m < rows; ++m) {
            const Vec<T> left = read(grad_z.channel[inside(i + m)] + p);
            for (int n = 0; n < columns; ++n) sum[m * columns + n] += left * right[n];
          }
        });
        for (int n = 0; n < width<T>; ++n) block[n] = sum[n];
      }
    }
    for (int i = 0; i < channels_; ++i) {
      Vec<T> sum = pending_ > 0 ? block[i] : Vec<T>{};
      over_vectors(x.count, [&](int64_t p, auto read) { sum += read(grad_z.channel[i] + p); });
      block[i] = sum;
    }
    pending_ += x.count;
    if (pending_ >= 256 * width<T>) finish();
  }

  void finish() {
    if (pending_ == 0) return;
    pending_ = 0;
    Vec<T>* block = lanes_;
    for (int i = 0; i < channels_; i += rows) {
      for (int j = 0; j < channels_; j += columns, block += width<T>) {
        const Vec<T> total = lane_sums<T>(block);
        for (int m = 0; m < rows && i + m < channels_; ++m) {
          for (int n = 0; n < columns && j + n < channels_; ++n) {
            matrix_[(i + m) * channels_ + j + n] += total[m * columns + n];
          }
        }
      }
    }
    for (int i = 0; i < channels_; ++i) {
      for (int lane = 0; lane < width<T>; ++lane) shift_[i] += block[i][lane];
    }
  }

  // x is padded.
  void add(const Lines<T>& grad_z, const Lines<T>& x) {
    for (int64_t p = 0; p < x.count; p += 256) add(grad_z, x, p, smaller(256, x.count - p));
  }

 private:
  static constexpr int columns = width<T> >= 8 ? width<T> / 4 : 2, rows = width<T> / columns;

  void add(const Lines<T>& grad_z, const Lines<T>& x, int64_t pixel, int64_t count) {
    const T *const left = grad_z.data + pixel * grad_z.pitch, *const right = x.data + pixel * x.pitch;
    const int64_t left_pitch = grad_z.pitch, right_pitch = x.pitch;
    in_parts<most_rows>(channels_, [&](auto height, int i) {
      in_parts<2>(vectors_of<T>(channels_), [&](auto each, int first) {
        constexpr int rows = decltype(height)::value, vectors = each.value;
        const int j = first * width<T>;
        Vec<T> sum[rows][vectors] = {};
        multiply<rows, vectors, T>(
            sum, count, [&](int m, int64_t p) { return left[p * left_pitch + i + m]; },
            [&](int64_t p, int v) { return load(right + p * right_pitch + j + v * width<T>); });
        for (int m = 0; m < rows; ++m) {
          double* const to = matrix_ + (i + m) * channels_ + j;
          for (int v = 0; v < vectors; ++v) add_lanes(to + v * width<T>, sum[m][v], channels_ - j - v * width<T>);
        }
      });
    });
    for (int i = 0; i < channels_; i += width<T>) {
      Vec<T> sum = {};
      const int lanes = static_cast<int>(smaller(width<T>, channels_ - i));
      for (int64_t p = 0; p < count; ++p) {
        const T* const from = left + p * left_pitch + i;
        sum += lanes == width<T> ? load(from) : load(from, lanes);
      }
      add_lanes(shift_ + i, sum, lanes);
    }
  }

  template <class Body>
  static FASTFLOW_INLINE void over_vectors(int64_t count, Body body) {
    int64_t p = 0;
    for (; p + width<T> <= count; p += width<T>) body(p, [](const T* from) { return load(from); });
    const int lanes = static_cast<int>(count - p);
    if (lanes > 0) body(p, [&](const T* from) { return load(from, lanes); });
  }

  static void add_lanes(double* to, Vec<T> from, int64_t count) {
    for (int lane = 0; lane < width<T> && lane < count; ++lane) to[lane] += from[lane];
  }

  int inside(int channel) const { return channel < channels_ ? channel : channels_ - 1; }

  double *matrix_, *shift_;
  Vec<T>* lanes_;
  int channels_;
  int64_t pending_ = 0;  // pixels that lanes_ has
};

PixelTile tile_of(const ChannelMix& op, int64_t index) {
  const int64_t first = index % op.tiles * op.tile;
  return {index / op.tiles, first, smaller(op.tile, op.pixels - first)};
}

template <class T>
void forward(const ChannelMix& op, int64_t first, int64_t last) {
  alignas(64) T from[tile_capacity], to[tile_capacity];
  const Matrix<T> matrix(op, false);
  const ChannelVector<T> center(op.center, op.channels), none(nullptr, op.channels);
  for (int64_t index = first; index < last; ++index) {
    const PixelTile tile = tile_of(op, index);
    if (op.channels_last) {
      const Lines<T> x(op.x, tile, op.channels, center, false, from);
      const Lines<T> z(op.z, tile, op.channels, none, false, to);
      x.read();
      matrix.multiply_lines(x, z);
      z.write();
    } else {
      const Planes<T> x(op.x, tile, from), z(op.z, tile, to);
      x.read();
      matrix.multiply_planes(x, center, z);
      z.write();
    }
  }
}

template <class T>
void backward(const ChannelMix& op, int64_t first, int64_t last) {
  alignas(64) T from[tile_capacity], to[tile_capacity], input[tile_capacity];
  const Matrix<T> transposed(op, true);
  const ChannelVector<T> center(op.center, op.channels), none(nullptr, op.channels);
  Sums<T> sums(op);
  for (int64_t index = first; index < last; ++index) {
    const PixelTile tile = tile_of(op, index);
    if (op.channels_last) {
      const Lines<T> grad_z(op.x, tile, op.channels, none, false, from), grad_x(op.z, tile, op.channels, none, false, to);
      const Lines<T> x(op.saved, tile, op.channels, center, true, input);
      grad_z.read();
      x.read();
      transposed.multiply_lines(grad_z, grad_x);
      grad_x.write();
      sums.add(grad_z, x);
    } else {
      const Planes<T> grad_z(op.x, tile, from), grad_x(op.z, tile, to), x(op.saved, tile, input);
      grad_z.read();
      x.read();
      transposed.multiply_planes(grad_z, none, grad_x, &x);
      grad_x.write();
      sums.add(grad_z, x, center);
    }
  }
  sums.finish();
}

}  // namespace

void channel_mix(const ChannelMix& op, int64_t first, int64_t last) {
  op.in_double ? forward<double>(op, first, last) : forward<float>(op, first, last);
}

void channel_mix_backward(const ChannelMix& op, int64_t first, int64_t last) {
  op.in_double ? backward<double>(op, first, last) : backward<float>(op, first, last);
}

}  // namespace fastflow::FASTFLOW_ISA

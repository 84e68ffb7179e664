// affine_coupling and its backward for one instruction set; see csrc/cpu/affine_coupling.cpp for what they cost.
#include "cpu/affine_coupling.h"

#include "passive.h"
#include "scale_maps.h"
#include "tiles.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

// Which lanes of a vector are transformed elements: all of them, or those inside the tile and not masked.
template <class T>
struct AllLanes {
  Vec<T> read(const T* from) const { return load(from); }
  void write(T* to, Vec<T> v) const { store(to, v); }
  Vec<T> active(Vec<T> v, Vec<T>) const { return v; }
};

template <class T>
struct SomeLanes {
  SomeLanes(const uint8_t* mask, int64_t left) : count(static_cast<int>(smaller(left, width<T>))) {
    transformed = mask == nullptr ? first_lanes<T>(count) : zero_bytes<T>(mask, count);
  }
  Vec<T> read(const T* from) const { return count == width<T> ? load(from) : load(from, count); }
  void write(T* to, Vec<T> v) const { count == width<T> ? store(to, v) : store(to, v, count); }
  Vec<T> active(Vec<T> v, Vec<T> otherwise) const { return transformed ? v : otherwise; }

  int count;
  Lanes<T> transformed;
};

// Calls step(offset, lanes) for each vector of a row of the tile.
template <class T, class Step>
inline void for_each_vector(const Tile<T>& tile, int64_t o, Step step) {
  int64_t i = 0;
  if (tile.mask == nullptr) {
    for (; i + width<T> <= tile.inner; i += width<T>) step(i, AllLanes<T>{});
  }
  for (; i < tile.inner; i += width<T>) {
    const uint8_t* mask = tile.mask == nullptr ? nullptr : tile.mask + o * tile.pitch[MASK] + i;
    step(i, SomeLanes<T>(mask, tile.inner - i));
  }
}

template <class T, class Map, bool inverse>
void forward_tile(const Tile<T>& tile, const Settings<T>& k, bool shift_first, LogDet<T>* log_det) {
  LogDetAccumulator<T, Map> total(log_det[0], k.interval);
  for (int64_t o = 0; o < tile.outer; ++o) {
    if (tile.row_step && o > 0) {
      log_det[o - 1] = total.total();
      total.restart(log_det[o]);
    }
    const T* const x = tile.data[X] + o * tile.pitch[X];
    const T* const scale = tile.data[SCALE] + o * tile.pitch[SCALE];
    const T* const shift = tile.data[SHIFT] + o * tile.pitch[SHIFT];
    const T* const gain = tile.data[GAIN] + o * tile.pitch[GAIN];
    T* const z = tile.data[Z] + o * tile.pitch[Z];
    for_each_vector(tile, o, [&](int64_t i, auto lanes) {
      Vec<T> s = {}, g = {};
      if constexpr (Map::has_scale) s = lanes.read(scale + i);
      if constexpr (Map::has_gain) g = lanes.read(gain + i);
      const Vec<T> v = lanes.read(x + i), t = lanes.read(shift + i);
      const ScaleTerms<T> terms = Map::template terms<inverse>(k, s, g);
      const Vec<T> m = terms.multiplier;
      const Vec<T> u = inverse ? (shift_first ? v * m - t : (v - t) * m) : (shift_first ? (v + t) * m : v * m + t);
      lanes.write(z + i, lanes.active(u, v));
      const Vec<T> one = splat<T>(Map::product == Product::of_factors ? 1 : 0);
      total.add(lanes.active(terms.term, Vec<T>{}), lanes.active(terms.factor, one));
    });
  }
  log_det[tile.row_step ? tile.outer - 1 : 0] = total.total();
}

// With y the saved tensor, g = grad_z, h = grad_log_det (the table is in the reference, backward_reference):
//   grad_x = g m, grad_shift = +-g or +-g m, grad log c = +-(w (y +- t) + h) with w = g, or g m from the input;
// t enters where the saved side is the one it was added to.
template <class T, class Map, bool inverse>
void backward_tile(const Tile<T>& tile, const Settings<T>& k, bool shift_first, bool from_input, const Vec<T>* h) {
  const bool shifted = (shift_first == inverse) != from_input, plus = inverse != from_input;
  const bool scaled_shift = shift_first != inverse;
  for (int64_t o = 0; o < tile.outer; ++o) {
    const Vec<T> grad_log_det = h[tile.row_step ? o : 0];
    const auto row = [&](Role role) { return tile.data[role] + o * tile.pitch[role]; };
    T* const grad_scale = row(GRAD_SCALE);
    for_each_vector(tile, o, [&](int64_t i, auto lanes) {
      Vec<T> s = {}, gain = {};
      if constexpr (Map::has_scale) s = lanes.read(row(SCALE) + i);
      if constexpr (Map::has_gain) gain = lanes.read(row(GAIN) + i);
      const ScaleTerms<T> terms = Map::template terms<inverse>(k, s, gain);
      const Vec<T> g = lanes.read(row(X) + i), scaled = g * terms.multiplier;
      lanes.write(row(Z) + i, lanes.active(scaled, g));
      const Vec<T> grad_shift = scaled_shift ? scaled : g;
      lanes.write(row(GRAD_SHIFT) + i, lanes.active(inverse ? -grad_shift : grad_shift, Vec<T>{}));
      if constexpr (Map::has_scale) {
        Vec<T> y = lanes.read(row(SAVED) + i);
        if (shifted) {
          const Vec<T> t = lanes.read(row(SHIFT) + i);
          y = plus ? y + t : y - t;
        }
        Vec<T> grad_log_c = (from_input ? scaled : g) * y + grad_log_det;
        if (inverse) grad_log_c = -grad_log_c;
        lanes.write(grad_scale + i, lanes.active(grad_log_c * terms.slope, Vec<T>{}));
        if constexpr (Map::has_gain) {
          lanes.write(row(GRAD_GAIN) + i, lanes.active(grad_log_c * terms.gain_slope, Vec<T>{}));
        }
      }
    });
  }
}

template <class T, class Map>
void start(LogDet<T>* rows) {
  for (int row = 0; row < width<T>; ++row) rows[row] = no_terms<T, Map>();
}

template <class T, class Map, bool inverse>
Vec<T> finish(LogDet<T>* rows, bool lanes_are_rows) {
  return value<T, Map>(lanes_are_rows ? rows[0] : join_lanes<T, Map>(rows), T(Map::product_sign(inverse)));
}

template <class T>
struct Kernels {
  void (*start)(LogDet<T>* rows);
  void (*forward)(const Tile<T>&, const Settings<T>&, bool shift_first, LogDet<T>*);
  Vec<T> (*finish)(LogDet<T>* rows, bool lanes_are_rows);
  void (*backward)(const Tile<T>&, const Settings<T>&, bool shift_first, bool from_input, const Vec<T>* h);
};

template <class T, class Map>
Kernels<T> kernels_of(bool inverse) {
  if (inverse) return {start<T, Map>, forward_tile<T, Map, true>, finish<T, Map, true>, backward_tile<T, Map, true>};
  return {start<T, Map>, forward_tile<T, Map, false>, finish<T, Map, false>, backward_tile<T, Map, false>};
}

template <class T>
Kernels<T> kernels(const AffineCoupling& c) {
  switch (c.kind) {
    case 1: return kernels_of<T, Exp>(c.inverse);
    case 2: return c.eps == 0 ? kernels_of<T, Sigmoid>(c.inverse) : kernels_of<T, SigmoidPlusEps>(c.inverse);
    case 3: return kernels_of<T, SoftplusPlusEps>(c.inverse);
    case 4:  // without a gain it is a clamp of 1
      return c.operand[GAIN].data == nullptr ? kernels_of<T, ClampTanh>(c.inverse) : kernels_of<T, GainTanh>(c.inverse);
    case 5: return kernels_of<T, ClampAtan>(c.inverse);
    case 6: return kernels_of<T, ClampTanh>(c.inverse);
    case 7: return kernels_of<T, ClampSigmoid>(c.inverse);
    case 8: return kernels_of<T, SoftClip>(c.inverse);
    default: return kernels_of<T, Additive>(c.inverse);
  }
}

template <class T>
Settings<T> settings(const AffineCoupling& c) {
  // Eight factors of sigmoid + eps, or eight 1 + f with f <= 1, stay inside the range of a float; softplus is unbounded.
  const bool bounded = c.kind != 3 && (c.eps == 0 || (c.eps > 0x1p-14 && c.eps < 0x1p14));
  return {static_cast<T>(c.bias), static_cast<T>(c.eps), static_cast<T>(c.clamp), bounded ? 8 : 1};
}

// Rows that are worked on together: a register of them, as long as they stay in the cache.
template <class T>
int64_t block_rows(const AffineCoupling& c) {
  int64_t elements = 1;
  for (int d = 0; d < c.dims; ++d) elements *= c.size[d];
  return smaller(width<T>, 1 + 4096 / elements);
}

template <class T>
void forward(const AffineCoupling& c, int64_t first_row, int64_t last_row) {
  const Kernels<T> run = kernels<T>(c);
  const Settings<T> k = settings<T>(c);
  const auto* running = static_cast<const T*>(c.log_det);
  auto* log_det = static_cast<T*>(c.log_det_out);
  Tiles<T> tiles(c);
  LogDet<T> totals[width<T>];
  const int64_t step = block_rows<T>(c);
  for (int64_t row = first_row; row < last_row; row += step) {
    const int64_t rows = smaller(step, last_row - row);
    copy_passive(c, row, rows);
    run.start(totals);
    tiles.for_each(row, rows, [&](const Tile<T>& tile, int64_t r) { run.forward(tile, k, c.shift_first, totals + r); });
    const Vec<T> own = run.finish(totals, tiles.lanes_are_rows);
    for (int64_t r = 0; r < rows; ++r) {
      log_det[row + r] = own[r] + (running == nullptr ? 0 : running[(row + r) * c.log_det_stride]);
    }
  }
}

template <class T>
void backward(const AffineCoupling& c, int64_t first_row, int64_t last_row) {
  const Kernels<T> run = kernels<T>(c);
  const Settings<T> k = settings<T>(c);
  const auto* grad_log_det = static_cast<const T*>(c.log_det);
  Tiles<T> tiles(c);
  Vec<T> h[width<T>] = {};
  const int64_t step = block_rows<T>(c);
  for (int64_t row = first_row; row < last_row; row += step) {
    const int64_t rows = smaller(step, last_row - row);
    copy_passive(c, row, rows);
    for (int64_t r = 0; r < rows && grad_log_det != nullptr; ++r) {
      const T value = grad_log_det[(row + r) * c.log_det_stride];
      if (tiles.lanes_are_rows) {
        h[0][r] = value;
      } else {
        h[r] = splat(value);
      }
    }
    tiles.for_each(row, rows, [&](const Tile<T>& tile, int64_t r) {
      run.backward(tile, k, c.shift_first, c.from_input, h + r);
    });
  }
}

}  // namespace

void affine_coupling(const AffineCoupling& c, int64_t first_row, int64_t last_row) {
  c.in_double ? forward<double>(c, first_row, last_row) : forward<float>(c, first_row, last_row);
}

void affine_coupling_backward(const AffineCoupling& c, int64_t first_row, int64_t last_row) {
  c.in_double ? backward<double>(c, first_row, last_row) : backward<float>(c, first_row, last_row);
}

}  // namespace fastflow::FASTFLOW_ISA

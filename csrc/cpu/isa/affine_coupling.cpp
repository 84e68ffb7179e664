// affine_coupling and its backward for one instruction set; see csrc/cpu/affine_coupling.cpp for what they cost.
#include "cpu/affine_coupling.h"

#include "blocks.h"
#include "scale_maps.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

// Tiles and settings come by value: no store can alias them.
template <class T, class Map, bool inverse, bool masked>
void forward_rows(Tile<T> tile, Settings<T> k, bool shift_first, LogDet<T>* log_det) {
  LogDetAccumulator<T, Map> total(k.interval);
  for (int64_t o = 0; o < tile.outer; ++o) {
    if (o == 0 || tile.outer_is_rows) total.start(tile.continues ? log_det + o : nullptr);
    const TileRow<T> row = {tile, o};
    row.copy_lines();
    const T *const x = row.at(X), *const scale = row.at(SCALE), *const shift = row.at(SHIFT), *const gain = row.at(GAIN);
    T* const z = row.at(Z);
    const Vec<T> row_gain = Map::has_gain ? row.gain() : Vec<T>{};
    row.template for_each_vector<masked>([&](int64_t i, auto lanes) {
      Vec<T> s = {}, a = {};
      if constexpr (Map::has_scale) s = lanes.read(scale + i);
      if constexpr (Map::has_gain) a = tile.constant_gain ? row_gain : lanes.read(gain + i);
      const Vec<T> v = lanes.read(x + i), t = lanes.read(shift + i);
      const ScaleTerms<T> terms = Map::template terms<inverse>(k, s, a);
      const Vec<T> m = terms.multiplier;
      const Vec<T> u = inverse ? (shift_first ? v * m - t : (v - t) * m) : (shift_first ? (v + t) * m : v * m + t);
      lanes.write(z + i, lanes.active(u, v));
      const Vec<T> one = splat<T>(Map::product == Product::of_factors ? 1 : 0);
      total.add(lanes.active(terms.term, Vec<T>{}), lanes.active(terms.factor, one));
    });
    if (tile.outer_is_rows) total.finish(log_det[o]);
  }
  if (!tile.outer_is_rows) total.finish(log_det[0]);
}

template <class T, class Map, bool inverse>
void forward_tile(const Tile<T>& tile, const Settings<T>& k, bool shift_first, LogDet<T>* log_det) {
  const bool masked = tile.data[MASK] != nullptr;
  (masked ? forward_rows<T, Map, inverse, true> : forward_rows<T, Map, inverse, false>)(tile, k, shift_first, log_det);
}

// With y the saved tensor, g = grad_z, h = grad_log_det, m = c or 1/c (the four forms are in backward_reference):
//   grad_x = g m, grad_shift = +-g or +-g m, grad log c = +-(w (y +- t) + h) with w = g, or g m when y is the input.
// t enters where y is on the side of the multiplication that the shift was added on.
template <class T, class Map, bool inverse, bool masked>
void backward_rows(Tile<T> tile, Settings<T> k, bool shift_first, bool from_input, const Vec<T>* h) {
  const bool shifted = (shift_first == inverse) != from_input, plus = inverse != from_input;
  const bool scaled_shift = shift_first != inverse;
  for (int64_t o = 0; o < tile.outer; ++o) {
    const Vec<T> grad_log_det = h[tile.outer_is_rows ? o : 0];
    const TileRow<T> row = {tile, o};
    row.copy_lines();
    const T *const grad_z = row.at(X), *const saved = row.at(SAVED), *const shift = row.at(SHIFT);
    const T *const scale = row.at(SCALE), *const gain = row.at(GAIN);
    T *const grad_x = row.at(Z), *const grad_shift = row.at(GRAD_SHIFT);
    T *const grad_scale = row.at(GRAD_SCALE), *const grad_gain = row.at(GRAD_GAIN);
    const Vec<T> row_gain = Map::has_gain ? row.gain() : Vec<T>{};
    row.template for_each_vector<masked>([&](int64_t i, auto lanes) {
      Vec<T> a = {}, y = lanes.read(saved + i);
      if constexpr (Map::has_gain) a = tile.constant_gain ? row_gain : lanes.read(gain + i);
      const ScaleTerms<T> terms = Map::template terms<inverse>(k, lanes.read(scale + i), a);
      const Vec<T> g = lanes.read(grad_z + i), scaled = g * terms.multiplier;
      const Vec<T> from_shift = scaled_shift ? scaled : g;
      if (shifted) {
        const Vec<T> t = lanes.read(shift + i);
        y = plus ? y + t : y - t;
      }
      Vec<T> grad_log_c = (from_input ? scaled : g) * y + grad_log_det;
      if (inverse) grad_log_c = -grad_log_c;
      lanes.write(grad_x + i, lanes.active(scaled, g));
      lanes.write(grad_shift + i, lanes.active(inverse ? -from_shift : from_shift, Vec<T>{}));
      lanes.write(grad_scale + i, lanes.active(grad_log_c * terms.slope, Vec<T>{}));
      if constexpr (Map::has_gain) lanes.write(grad_gain + i, lanes.active(grad_log_c * terms.gain_slope, Vec<T>{}));
    });
  }
}

template <class T, class Map, bool inverse>
void backward_tile(const Tile<T>& tile, const Settings<T>& k, bool shift_first, bool from_input, const Vec<T>* h) {
  const bool masked = tile.data[MASK] != nullptr;
  (masked ? backward_rows<T, Map, inverse, true> : backward_rows<T, Map, inverse, false>)(tile, k, shift_first,
                                                                                         from_input, h);
}

template <class T, class Map, bool inverse>
Vec<T> finish(LogDet<T>* rows, bool lanes_are_rows) {
  return value<T, Map>(lanes_are_rows ? rows[0] : join_lanes<T, Map>(rows), T(Map::product_sign(inverse)));
}

template <class T>
struct Kernels {
  void (*forward)(const Tile<T>&, const Settings<T>&, bool shift_first, LogDet<T>*);
  Vec<T> (*finish)(LogDet<T>* rows, bool lanes_are_rows);
  void (*backward)(const Tile<T>&, const Settings<T>&, bool shift_first, bool from_input, const Vec<T>* h);
};

template <class T, class Map>
Kernels<T> kernels_of(bool inverse) {
  if (inverse) return {forward_tile<T, Map, true>, finish<T, Map, true>, backward_tile<T, Map, true>};
  return {forward_tile<T, Map, false>, finish<T, Map, false>, backward_tile<T, Map, false>};
}

template <class T>
Kernels<T> kernels(const AffineCoupling& c) {
  const bool has_gain = c.operand[GAIN].data != nullptr;
  return with_scale_map(c.kind, c.eps, has_gain, [&](auto map) { return kernels_of<T, decltype(map)>(c.inverse); });
}

template <class T>
void forward(const AffineCoupling& c, int64_t first_row, int64_t last_row) {
  const Kernels<T> run = kernels<T>(c);
  const Settings<T> k = settings<T>(c.kind, c.bias, c.eps, c.clamp);
  forward_blocks<T>(
      c, first_row, last_row,
      [&](const Tile<T>& tile, LogDet<T>* totals) { run.forward(tile, k, c.shift_first, totals); }, run.finish);
}

template <class T>
void backward(const AffineCoupling& c, int64_t first_row, int64_t last_row) {
  const Kernels<T> run = kernels<T>(c);
  const Settings<T> k = settings<T>(c.kind, c.bias, c.eps, c.clamp);
  backward_blocks<T>(c, first_row, last_row, [&](const Tile<T>& tile, const Vec<T>* h) {
    run.backward(tile, k, c.shift_first, c.from_input, h);
  });
}

}  // namespace

void affine_coupling(const AffineCoupling& c, int64_t first_row, int64_t last_row) {
  c.in_double ? forward<double>(c, first_row, last_row) : forward<float>(c, first_row, last_row);
}

void affine_coupling_backward(const AffineCoupling& c, int64_t first_row, int64_t last_row) {
  c.in_double ? backward<double>(c, first_row, last_row) : backward<float>(c, first_row, last_row);
}

}  // namespace fastflow::FASTFLOW_ISA

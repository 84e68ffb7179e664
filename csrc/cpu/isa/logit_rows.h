// The logit and its inverse on the rows of a tile; formulas as in fastflow/ops/logit.py.
#pragma once

#include "blocks.h"

namespace fastflow::FASTFLOW_ISA {

// What a row's log_det is gathered from: a product of p (1 - p), or terms -|z| and a product of 1 + exp(-|z|).
struct Forward {
  static constexpr bool has_terms = false;
  static constexpr Product product = Product::of_factors;
};
struct Inverse {
  static constexpr bool has_terms = true;
  static constexpr Product product = Product::of_one_plus;
};

// Eight factors p (1 - p) stay inside the range of a float unless alpha lets p come close to 0.
inline int interval(bool inverse, double alpha) { return inverse || alpha > 0x1p-13 ? 8 : 1; }

template <class T, class Direction>
void forward_rows(Tile<T> tile, T alpha, int interval, LogDet<T>* log_det) {
  LogDetAccumulator<T, Direction> total(interval);
  const T stretch = 1 / (1 - alpha);
  for (int64_t o = 0; o < tile.outer; ++o) {
    if (o == 0 || tile.outer_is_rows) total.start(tile.continues ? log_det + o : nullptr);
    const TileRow<T> row = {tile, o};
    const T* const x = row.at(X);
    T* const z = row.at(Z);
    row.template for_each_vector<false>([&](int64_t i, auto lanes) {
      const Vec<T> v = lanes.read(x + i);
      if constexpr (Direction::has_terms) {
        const Vec<T> e = exp_of_minus_absolute<T>(v), sigmoid = (v < 0 ? e : splat<T>(1)) / (e + 1);
        lanes.write(z + i, (sigmoid - alpha / 2) * stretch);
        total.add(lanes.active(minus_absolute<T>(v), Vec<T>{}), lanes.active(e, Vec<T>{}));
      } else {
        const Vec<T> p = v * (1 - alpha) + alpha / 2, rest = 1 - p, factor = p * rest;
        const Lanes<T> outside = factor < 0;
        lanes.write(z + i, outside ? splat<T>(NAN) : log(split<T>(p / rest)));
        total.add(Vec<T>{}, lanes.active(outside ? splat<T>(NAN) : factor, splat<T>(1)));
      }
    });
    if (tile.outer_is_rows) total.finish(log_det[o]);
  }
  if (!tile.outer_is_rows) total.finish(log_det[0]);
}

}  // namespace fastflow::FASTFLOW_ISA

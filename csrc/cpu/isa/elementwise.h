// The loops of element-wise bijections without parameters, given the formulas of one element.
#pragma once

#include "blocks.h"

namespace fastflow::FASTFLOW_ISA {

// z, and what the element adds to the row's log_det: a term of its sum, a factor of its product.
template <class T>
struct Image {
  Vec<T> z, term = Vec<T>{}, factor = Vec<T>{};
};

template <class T, class Map>
void transform_rows(Tile<T> tile, Map map, LogDet<T>* log_det) {
  LogDetAccumulator<T, Map> total(map.interval);
  const Vec<T> no_term = {}, no_factor = splat<T>(Map::product == Product::of_factors ? 1 : 0);
  for (int64_t o = 0; o < tile.outer; ++o) {
    if (o == 0 || tile.outer_is_rows) total.start(tile.continues ? log_det + o : nullptr);
    const TileRow<T> row = {tile, o};
    const T* const x = row.at(X);
    T* const z = row.at(Z);
    row.template for_each_vector<false>([&](int64_t i, auto lanes) {
      const Image<T> image = map(lanes.read(x + i));
      lanes.write(z + i, image.z);
      total.add(lanes.active(image.term, no_term), lanes.active(image.factor, no_factor));
    });
    if (tile.outer_is_rows) total.finish(log_det[o]);
  }
  if (!tile.outer_is_rows) total.finish(log_det[0]);
}

// z = map(x).z, and the log_det that Map's terms and product say, plus the same `constant` for each row.
template <class T, class Map>
void transform(const RowOp& op, int64_t first_row, int64_t last_row, Map map, T constant = 0) {
  forward_blocks<T>(
      op, first_row, last_row, [&](const Tile<T>& tile, LogDet<T>* totals) { transform_rows<T>(tile, map, totals); },
      [&](LogDet<T>* totals, bool lanes_are_rows) {
        return value<T, Map>(lanes_are_rows ? totals[0] : join_lanes<T, Map>(totals), Map::product_sign) + constant;
      });
}

template <class T, class Slope>
void differentiate_rows(Tile<T> tile, Slope slope, const Vec<T>* h) {
  for (int64_t o = 0; o < tile.outer; ++o) {
    const Vec<T> grad_log_det = h[tile.outer_is_rows ? o : 0];
    const TileRow<T> row = {tile, o};
    const T *const grad_z = row.at(X), *const saved = row.at(SAVED);
    T* const grad_x = row.at(Z);
    row.template for_each_vector<false>([&](int64_t i, auto lanes) {
      lanes.write(grad_x + i, slope(lanes.read(saved + i), lanes.read(grad_z + i), grad_log_det));
    });
  }
}

// grad_x = slope(x, grad_z, grad_log_det).
template <class T, class Slope>
void differentiate(const RowOp& op, int64_t first_row, int64_t last_row, Slope slope) {
  backward_blocks<T>(op, first_row, last_row,
                     [&](const Tile<T>& tile, const Vec<T>* h) { differentiate_rows<T>(tile, slope, h); });
}

}  // namespace fastflow::FASTFLOW_ISA

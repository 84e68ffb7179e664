// residual_coupling for one instruction set; see csrc/cpu/residual_coupling.cpp for what it costs.
#include "cpu/residual_coupling.h"

#include "blocks.h"
#include "packing.h"
#include "residual_mlp.h"
#include "scale_maps.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

template <class P, class Map>
void couple(const ResidualCoupling& op, const Results& results, const ResidualMlp<P>& mlp) {
  using T = typename P::T;
  const Settings<T> k = settings<T>(op.kind, op.bias, op.eps, op.clamp);
  const Features& out = mlp.last().out;
  const auto* const running = static_cast<const T*>(op.log_det);
  LogDet<T> totals[width<T>] = {};
  for (int64_t block = 0; block < results.rows; block += width<T>) {
    const int64_t rows = smaller(width<T>, results.rows - block);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t tile_row = block + r, result = results.first + tile_row;
      const T* const x = dense_row<T>(op.active, op.active_shared ? results.row[tile_row] : result, out.size, op.line);
      const T *const scale = mlp.made(tile_row), *const shift = scale + out.pitch;
      T* const z = static_cast<T*>(op.z) + result * out.size;
      LogDetAccumulator<T, Map> total(k.interval);
      const Vec<T> one = splat<T>(Map::product == Product::of_factors ? 1 : 0);
      for (int64_t i = 0; i < out.size; i += width<T>) {
        const SomeLanes<T> lanes(nullptr, out.size - i);
        const Vec<T> v = lanes.read(x + i), t = load(shift + i);
        const ScaleTerms<T> terms = Map::template terms<false>(k, load(scale + i), Vec<T>{});
        lanes.write(z + i, op.shift_first ? (v + t) * terms.multiplier : v * terms.multiplier + t);
        total.add(lanes.active(terms.term, Vec<T>{}), lanes.active(terms.factor, one));
      }
      total.finish(totals[r]);
    }
    const Vec<T> own = value<T, Map>(join_lanes<T, Map>(totals), T(Map::product_sign(false)));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t result = results.first + block + r;
      static_cast<T*>(op.log_det_out)[result] = own[r] + (running ? running[result * op.log_det_stride] : 0);
    }
  }
}

}  // namespace

void residual_coupling_pack(const ResidualCoupling& op, int64_t first, int64_t last) {
  with_products(op, [&](auto products) {
    for (int64_t unit = first; unit < last; ++unit) pack_unit<decltype(products)>(op.layer, op.layers, unit);
  });
}

void residual_coupling(const ResidualCoupling& op, int64_t first, int64_t last) {
  with_products(op, [&](auto products) {
    using P = decltype(products);
    const ResidualMlp<P> mlp(op, 0);
    const auto couple_rows = with_scale_map(op.kind, op.eps, false, [](auto map) { return &couple<P, decltype(map)>; });
    in_tiles(first, last, [&](int64_t row, int64_t rows) {
      const Results results(op, row, rows);
      mlp.forward(results);
      couple_rows(op, results, mlp);
    });
  });
}

}  // namespace fastflow::FASTFLOW_ISA

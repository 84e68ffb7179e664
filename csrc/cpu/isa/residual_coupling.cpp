// residual_coupling for one instruction set; see csrc/cpu/residual_coupling.cpp for what it costs.
#include "cpu/residual_coupling.h"

#include "blocks.h"
#include "residual_mlp.h"
#include "scale_maps.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

// The number of the weight's row, or column, at this place; -1 for one that only fills.
int64_t feature_at(const Features& features, int64_t place) {
  const int64_t index = place % features.pitch;
  return index < features.size ? place / features.pitch * features.size + index : -1;
}

// Panels of 32 columns from `column` on.
template <class P>
void pack(const Operand& weight, const Features& columns, int64_t column_stride, const Features& inputs,
          int64_t input_stride, void* packed, int64_t column) {
  using Weight = typename P::Weight;
  constexpr int64_t columns_of_panel = panel<typename P::T>;
  const auto* const from = reinterpret_cast<const Weight*>(weight.data);
  const int64_t count = depth<P>(inputs);
  for (int64_t first = column; first < column + 32; first += columns_of_panel) {
    auto* const to = static_cast<typename P::Input*>(packed) + first * count;
    const Weight* of_column[columns_of_panel];
    for (int64_t n = 0; n < columns_of_panel; ++n) {
      const int64_t feature = feature_at(columns, first + n);
      of_column[n] = feature < 0 ? nullptr : from + feature * column_stride;
    }
    for (int64_t k = 0; k < count; ++k) {
      const int64_t feature = feature_at(inputs, k);
      for (int64_t n = 0; n < columns_of_panel; ++n) {
        const bool fills = feature < 0 || of_column[n] == nullptr;
        const Weight value = fills ? Weight{} : of_column[n][feature * input_stride];
        to[(k / P::fold * columns_of_panel + n) * P::fold + k % P::fold] = P::pack(value);
      }
    }
  }
}

template <class P>
void pack(const ResidualCoupling& op, int64_t unit) {
  for (int layer = 0; layer < op.layers; ++layer) {
    const Linear& each = op.layer[layer];
    const Operand& weight = each.weight;
    const int64_t units = places(each.out) / 32, transposed_units = each.transposed ? places(each.in) / 32 : 0;
    if (unit < units) {
      return pack<P>(weight, each.out, weight.row_stride, each.in, weight.stride[0], each.packed, unit * 32);
    }
    unit -= units;
    if (unit < transposed_units) {
      return pack<P>(weight, each.in, weight.stride[0], each.out, weight.row_stride, each.transposed, unit * 32);
    }
    unit -= transposed_units;
  }
}

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
    for (int64_t unit = first; unit < last; ++unit) pack<decltype(products)>(op, unit);
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

// logit and its backward for one instruction set; formulas as in fastflow/ops/logit.py.
#include "cpu/logit.h"

#include "logit_rows.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

// With h = grad_log_det: forward (1 - alpha) / (p (1 - p)) (g + h (2 p - 1)), inverse g p (1 - p) / (1 - alpha) -
// h tanh(z / 2) with p = sigmoid(z), 1 - p and tanh from exp(-|z|) without cancellation.
template <class T, bool inverse>
void backward_rows(Tile<T> tile, T alpha, const Vec<T>* h) {
  const T stretch = 1 / (1 - alpha);
  for (int64_t o = 0; o < tile.outer; ++o) {
    const Vec<T> grad_log_det = h[tile.outer_is_rows ? o : 0];
    const TileRow<T> row = {tile, o};
    const T *const grad_z = row.at(X), *const saved = row.at(SAVED);
    T* const grad_x = row.at(Z);
    row.template for_each_vector<false>([&](int64_t i, auto lanes) {
      const Vec<T> g = lanes.read(grad_z + i), v = lanes.read(saved + i);
      if constexpr (inverse) {
        const Vec<T> e = exp_of_minus_absolute<T>(v), reciprocal = 1 / (e + 1);
        const Vec<T> tanh = copy_sign<T>((1 - e) * reciprocal, v);
        lanes.write(grad_x + i, g * (e * reciprocal * reciprocal) * stretch - grad_log_det * tanh);
      } else {
        const Vec<T> p = v * (1 - alpha) + alpha / 2, rest = 1 - p;
        lanes.write(grad_x + i, (g + grad_log_det * (p - rest)) * ((1 - alpha) / (p * rest)));
      }
    });
  }
}

template <class T>
void forward(const Logit& op, int64_t first_row, int64_t last_row) {
  const T alpha = static_cast<T>(op.alpha);
  const T contraction = static_cast<T>(elements_of_row(op) * log1p(-op.alpha));
  const int every = interval(op.inverse, op.alpha);
  const auto walk = [&](auto direction, T sign, T constant) {
    using Direction = decltype(direction);
    forward_blocks<T>(
        op, first_row, last_row,
        [&](const Tile<T>& tile, LogDet<T>* totals) { forward_rows<T, Direction>(tile, alpha, every, totals); },
        [&](LogDet<T>* totals, bool lanes_are_rows) {
          return value<T, Direction>(lanes_are_rows ? totals[0] : join_lanes<T, Direction>(totals), sign) + constant;
        });
  };
  op.inverse ? walk(Inverse{}, T(-2), -contraction) : walk(Forward{}, T(-1), contraction);
}

template <class T>
void backward(const Logit& op, int64_t first_row, int64_t last_row) {
  const T alpha = static_cast<T>(op.alpha);
  backward_blocks<T>(op, first_row, last_row, [&](const Tile<T>& tile, const Vec<T>* h) {
    op.inverse ? backward_rows<T, true>(tile, alpha, h) : backward_rows<T, false>(tile, alpha, h);
  });
}

}  // namespace

void logit(const Logit& op, int64_t first_row, int64_t last_row) {
  op.in_double ? forward<double>(op, first_row, last_row) : forward<float>(op, first_row, last_row);
}

void logit_backward(const Logit& op, int64_t first_row, int64_t last_row) {
  op.in_double ? backward<double>(op, first_row, last_row) : backward<float>(op, first_row, last_row);
}

}  // namespace fastflow::FASTFLOW_ISA

// dequantize_logit for one instruction set: a part of a row at a time is dequantised in the cache, then logit runs on it.
#include "cpu/dequantize_logit.h"

#include "logit_forward.h"
#include "philox.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

constexpr int64_t part = 512;

template <class T, class Level>
void run(const DequantizeLogit& op, int64_t first_row, int64_t last_row) {
  const int64_t features = elements_of_row(op);
  const Operand& out = op.operand[Z];
  const bool direct = out.dtype == native<T>;
  const T levels = static_cast<T>(op.levels), alpha = static_cast<T>(op.alpha);
  const T contraction = static_cast<T>(features * ::log1p(-op.alpha));
  const LogitForward<T> logit = {alpha};
  alignas(64) float noise[part];
  alignas(64) T v[part], z[part];
  for (float& middle : noise) middle = 0.5f;
  LogDet<T> totals[width<T>] = {};
  for (int64_t row = first_row; row < last_row; row += width<T>) {
    const int64_t rows = smaller(width<T>, last_row - row);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t start = 0; start < features; start += part) {
        const int64_t at = (row + r) * features + start, count = smaller(part, features - start);
        const auto* x = reinterpret_cast<const Level*>(op.operand[X].data) + at;
        char* const to = out.data + at * bytes_of[out.dtype];
        for (int64_t i = 0; i < count && op.key.rows != nullptr; i += noise_run) {
          uniform_run(noise + i, op.key, op.key.rows[(row + r) * op.key.stride], (start + i) / 4);
        }
        for (int64_t i = 0; i < count; ++i) v[i] = (static_cast<T>(x[i]) + noise[i]) / levels;
        Tile<T> tile = {};
        tile.data[X] = v;
        tile.data[Z] = direct ? reinterpret_cast<T*>(to) : z;
        tile.outer = 1;
        tile.inner = count;
        tile.continues = start > 0;
        transform_rows<T>(tile, logit, totals + r);
        if (!direct) unpack(to, z, out.dtype, {1, count, count, 1});
      }
    }
    const Vec<T> own = value<T, LogitForward<T>>(join_lanes<T, LogitForward<T>>(totals), logit.product_sign) + contraction;
    for (int64_t r = 0; r < rows; ++r) static_cast<T*>(op.log_det_out)[row + r] = own[r];
  }
}

template <class T>
void run(const DequantizeLogit& op, int64_t first_row, int64_t last_row) {
  op.wide ? run<T, int32_t>(op, first_row, last_row) : run<T, uint8_t>(op, first_row, last_row);
}

}  // namespace

void dequantize_logit(const DequantizeLogit& op, int64_t first_row, int64_t last_row) {
  op.in_double ? run<double>(op, first_row, last_row) : run<float>(op, first_row, last_row);
}

}  // namespace fastflow::FASTFLOW_ISA

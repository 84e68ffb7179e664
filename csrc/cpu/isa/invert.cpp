// invert for one instruction set: Gauss-Jordan elimination in place, with the largest pivot of each column.
#include "cpu/invert.h"

#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

void invert(const Invert& op, int64_t, int64_t) {
  const int rows = op.rows;
  double* const m = op.matrix;
  int exchanged[most_rows_to_invert];
  double log_abs_det = 0;
  for (int k = 0; k < rows; ++k) {
    int pivot = k;
    for (int r = k + 1; r < rows; ++r) pivot = fabs(m[r * rows + k]) > fabs(m[pivot * rows + k]) ? r : pivot;
    exchanged[k] = pivot;
    if (m[pivot * rows + k] == 0) {
      for (int n = 0; n < rows * rows; ++n) m[n] = NAN;
      *op.log_abs_det = -INFINITY;
      return;
    }
    double* const row = m + k * rows;
    for (int c = 0; c < rows && pivot != k; ++c) {
      const double kept = row[c];
      row[c] = m[pivot * rows + c];
      m[pivot * rows + c] = kept;
    }
    const double reciprocal = 1 / row[k];
    log_abs_det += log(fabs(row[k]));
    row[k] = 1;
    for (int c = 0; c < rows; ++c) row[c] *= reciprocal;
    for (int r = 0; r < rows; ++r) {
      double* const other = m + r * rows;
      if (r == k) continue;
      const double factor = other[k];
      other[k] = 0;
#pragma omp simd
      for (int c = 0; c < rows; ++c) other[c] -= factor * row[c];
    }
  }
  for (int k = rows - 1; k >= 0; --k) {
    for (int r = 0; r < rows && exchanged[k] != k; ++r) {
      double* const other = m + r * rows;
      const double kept = other[k];
      other[k] = other[exchanged[k]];
      other[exchanged[k]] = kept;
    }
  }
  *op.log_abs_det = log_abs_det;
}

}  // namespace fastflow::FASTFLOW_ISA

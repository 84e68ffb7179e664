// Gauss-Jordan elimination in place, with the largest pivot of each column, by a team of threads: one on a CPU, a block
// on a GPU.
#pragma once

#include <math.h>

#include "host_device.h"

namespace fastflow {

constexpr int most_rows_to_invert = 64;

// What the threads of a team share.
struct Elimination {
  double* matrix;  // [rows, rows], replaced by its inverse, or by no number if it is singular
  int rows;
  double log_abs_det;
  int exchanged[most_rows_to_invert];  // the row that each was exchanged with
  double factor[most_rows_to_invert];  // of the present pivot's row, to be taken from each other row
};

// Team: the calling thread is column() of columns() of line() of lines(); barrier() waits for all.
template <class Team>
FASTFLOW_HOST_DEVICE void invert(Elimination& e, Team team) {
  const int rows = e.rows, rank = team.line() * team.columns() + team.column(), size = team.lines() * team.columns();
  double* const m = e.matrix;
  if (rank == 0) e.log_abs_det = 0;
  for (int k = 0; k < rows; ++k) {
    if (rank == 0) {
      int pivot = k;
      for (int r = k + 1; r < rows; ++r) {
        if (fabs(m[r * rows + k]) > fabs(m[pivot * rows + k])) pivot = r;
      }
      e.exchanged[k] = pivot;
      if (e.log_abs_det != -INFINITY) e.log_abs_det += log(fabs(m[pivot * rows + k]));
    }
    team.barrier();
    double *const row = m + k * rows, *const other = m + e.exchanged[k] * rows;
    for (int c = rank; c < rows; c += size) {
      const double kept = row[c];
      row[c] = other[c];
      other[c] = kept;
    }
    team.barrier();
    for (int r = rank; r < rows; r += size) e.factor[r] = m[r * rows + k];
    team.barrier();
    const double reciprocal = 1 / e.factor[k];
    for (int c = rank; c < rows; c += size) row[c] = (c == k ? 1 : row[c]) * reciprocal;
    team.barrier();
    for (int r = team.line(); r < rows; r += team.lines()) {
      double* const changed = m + r * rows;
      const double factor = e.factor[r];
      if (r == k) continue;
      for (int c = team.column(); c < rows; c += team.columns()) changed[c] = (c == k ? 0 : changed[c]) - factor * row[c];
    }
    team.barrier();
  }
  for (int k = rows - 1; k >= 0; --k) {
    for (int r = rank; r < rows; r += size) {
      double* const changed = m + r * rows;
      const double kept = changed[k];
      changed[k] = changed[e.exchanged[k]];
      changed[e.exchanged[k]] = kept;
    }
    team.barrier();
  }
}

}  // namespace fastflow

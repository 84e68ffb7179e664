// Sums over the rows of a RowOp that are the same bits on any number of threads.
#pragma once

#include <vector>

#include "tensors.h"

namespace fastflow {

// `count` sums: run(sums, first_row, last_row) adds to those of a fixed chunk of rows, which then are added as a tree.
template <class Run>
std::vector<double> sum_over_rows(const RowOp& op, int64_t count, Run run) {
  const int64_t elements = elements_of_row(op);
  const int64_t chunk_rows = std::max(1 + 16384 / elements, 1 + (op.rows - 1) / 256);
  const int64_t chunks = 1 + (op.rows - 1) / chunk_rows;
  std::vector<double> sums(chunks * count);
  torch::stable::parallel_for(
      0, chunks, std::max<int64_t>(1, grain / (elements * chunk_rows)), [&](int64_t first, int64_t last) {
        for (int64_t chunk = first; chunk < last; ++chunk) {
          run(sums.data() + chunk * count, chunk * chunk_rows, std::min((chunk + 1) * chunk_rows, op.rows));
        }
      });
  for (int64_t apart = 1; apart < chunks; apart *= 2) {
    for (int64_t chunk = 0; chunk + apart < chunks; chunk += 2 * apart) {
      double* sum = sums.data() + chunk * count;
      for (int64_t n = 0; n < count; ++n) sum[n] += sum[apart * count + n];
    }
  }
  sums.resize(count);
  return sums;
}

}  // namespace fastflow

// Weights of any strides into slices, their biases into padded vectors.
#pragma once

#include "residual_coupling/problem.h"

namespace fastflow::residual_coupling {

struct PackJob {
  const void* from;
  int64_t row, column;       // strides; a vector has rows only
  int rows, columns;         // outputs and inputs of the product
  int row_half, column_half; // not 0: that side alternates between its halves, of so many
  int passes, slices;        // a vector has no slices
  void* to;
};

struct PackJobs {
  PackJob job[most_jobs];
  int width;
};

// Where index n of an alternating side comes from.
FASTFLOW_HOST_DEVICE constexpr int unwoven(int n, int half) { return half ? n % 2 * half + n / 2 : n; }

template <class Element>
FASTFLOW_HOST_DEVICE Element entry(const PackJob& job, int row, int column) {
  if (row >= job.rows || column >= job.columns) return {};
  return static_cast<const Element*>(
      job.from)[unwoven(row, job.row_half) * job.row + unwoven(column, job.column_half) * job.column];
}

// Step `index` of the job: 16 bytes of a slice, or one element of a vector.
template <class Element>
FASTFLOW_HOST_DEVICE void pack(const PackJob& job, int width, int64_t index) {
  if (job.slices == 0) {
    if (index < int64_t(job.passes) * width) static_cast<float*>(job.to)[index] = entry<float>(job, int(index), 0);
    return;
  }
  constexpr int chunk_elements = 16 / sizeof(Element), chunks = slice_row_bytes / 16;
  const int chunk = int(index % chunks), n = int(index / chunks % width);
  const int64_t slice = index / chunks / width;
  if (slice >= int64_t(job.passes) * job.slices) return;
  Element* const to = static_cast<Element*>(job.to) +
                      ((slice * width + n) * chunks + swizzled(n, chunk)) * chunk_elements;
  const int row = int(slice / job.slices) * width + n;
  const int column = (int(slice % job.slices) * chunks + chunk) * chunk_elements;
#pragma unroll
  for (int i = 0; i < chunk_elements; ++i) to[i] = entry<Element>(job, row, column + i);
}

}  // namespace fastflow::residual_coupling

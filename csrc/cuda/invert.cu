// invert for CUDA: one block, whose shared memory holds the matrix; C^3 fused multiply-adds in float64 and C steps that
// wait for each other. Not yet timed on a device.

#include "cuda/stream.h"
#include "invert.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

namespace fastflow {
namespace {

using torch::stable::Tensor;

constexpr int block_columns = 64, block_lines = 4;

struct Block {
  __device__ int line() const { return threadIdx.y; }
  __device__ int lines() const { return block_lines; }
  __device__ int column() const { return threadIdx.x; }
  __device__ int columns() const { return block_columns; }
  __device__ void barrier() const { __syncthreads(); }
};

__global__ void __launch_bounds__(block_columns* block_lines)
    invert_kernel(const double* matrix, int64_t row_stride, int64_t column_stride, int rows, double* inverse,
                  double* log_abs_det) {
  __shared__ double entries[most_rows_to_invert * most_rows_to_invert];
  __shared__ Elimination elimination;
  const Block block;
  for (int r = block.line(); r < rows; r += block.lines()) {
    for (int c = block.column(); c < rows; c += block.columns()) {
      entries[r * rows + c] = matrix[r * row_stride + c * column_stride];
    }
  }
  if (block.line() == 0 && block.column() == 0) {
    elimination.matrix = entries;
    elimination.rows = rows;
  }
  block.barrier();
  invert(elimination, block);
  for (int i = block.line() * block_columns + block.column(); i < rows * rows; i += block_columns * block_lines) {
    inverse[i] = entries[i];
  }
  if (block.line() == 0 && block.column() == 0) *log_abs_det = elimination.log_abs_det;
}

// matrix [C, C], float64, C at most most_rows_to_invert -> its inverse and log|det|.
std::tuple<Tensor, Tensor> inverse_and_log_abs_det(const Tensor& matrix) {
  Tensor inverse = torch::stable::new_empty(matrix, {matrix.size(0), matrix.size(1)});
  Tensor log_abs_det = torch::stable::new_empty(matrix, {});
  const torch::stable::accelerator::DeviceGuard guard(matrix.get_device_index());
  invert_kernel<<<1, dim3(block_columns, block_lines), 0, current_stream(matrix)>>>(
      static_cast<const double*>(matrix.const_data_ptr()), matrix.stride(0), matrix.stride(1),
      static_cast<int>(matrix.size(0)), static_cast<double*>(inverse.mutable_data_ptr()),
      static_cast<double*>(log_abs_det.mutable_data_ptr()));
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "invert: ", cudaGetErrorString(error));
  return {inverse, log_abs_det};
}

}  // namespace
}  // namespace fastflow

// Not under fastflow::, as in gaussian_class_scores.cu.
STABLE_TORCH_LIBRARY_IMPL(fastflow_cuda, CUDA, m) { m.impl("invert", TORCH_BOX(&fastflow::inverse_and_log_abs_det)); }

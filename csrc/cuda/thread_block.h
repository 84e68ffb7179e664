// Runs the kernels that are structs (csrc/gaussian_class_scores.h) on a CUDA device. csrc/testing/thread_block.h runs
// them on the host.
#pragma once

#include "cuda/stream.h"
#include "host_device.h"

#include <torch/csrc/stable/ops.h>

#include <vector>

namespace fastflow {

struct ThreadBlock {
  __device__ int thread() const { return threadIdx.x; }
  __device__ int64_t x() const { return blockIdx.x; }
  __device__ int64_t y() const { return blockIdx.y; }
  __device__ int64_t z() const { return blockIdx.z; }
  __device__ void barrier() const { __syncthreads(); }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks) run(const __grid_constant__ Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  kernel(shared, ThreadBlock());
}

// The device and current stream of a tensor. What is allocated returns to torch's allocator with this object, which
// hands it out again in the order of the stream.
class Device {
 public:
  Device(const char* op, const torch::stable::Tensor& like) : op_(op), like_(like), stream_(current_stream(like)) {}

  template <class T>
  T* allocate(int64_t count) {
    const auto bytes = static_cast<int64_t>(sizeof(T)) * count;
    kept_.push_back(torch::stable::new_empty(like_, {bytes}, torch::headeronly::ScalarType::Byte));
    return static_cast<T*>(kept_.back().mutable_data_ptr());
  }

  template <class Kernel>
  void launch(const Grid& grid, const Kernel& kernel) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    run<<<dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)), Kernel::threads, 0, stream_>>>(kernel);
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorString(error));
  }

  int multiprocessors() const {
    int count = 1;
    const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, like_.get_device_index());
    STD_TORCH_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorString(error));
    return count;
  }

 private:
  const char* op_;
  torch::stable::Tensor like_;
  cudaStream_t stream_;
  std::vector<torch::stable::Tensor> kept_;
};

}  // namespace fastflow

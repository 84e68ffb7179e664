// What the two files of residual_coupling share: how a plan gets memory and runs kernels, and what it is made from.
#pragma once

#include "cuda/stream.h"
#include "cuda/tensor_cores.h"
#include "residual_coupling/plan.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

namespace fastflow::residual_coupling {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

extern __shared__ __align__(16) char shared_memory[];

template <class Element>
__global__ void __launch_bounds__(threads) residual_coupling_pack_kernel(const __grid_constant__ PackJobs jobs) {
  pack<Element>(jobs.job[blockIdx.y], jobs.width, int64_t(blockIdx.x) * threads + threadIdx.x);
}

// Scratch memory goes back when the call ends, to be reused in the order of the stream.
struct DeviceLaunch {
  const Tensor& like;
  cudaStream_t stream;
  std::vector<Tensor> scratch;

  explicit DeviceLaunch(const Tensor& like) : like(like), stream(current_stream(like)) {}

  int64_t processors() const {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, like.get_device_index()));
    return count;
  }

  void* bytes(int64_t count) {
    scratch.push_back(torch::stable::new_empty(like, {count}, ScalarType::Byte));
    return scratch.back().mutable_data_ptr();
  }

  static void check(cudaError_t error) {
    STD_TORCH_CHECK(error == cudaSuccess, "residual_coupling: ", cudaGetErrorString(error));
  }

  template <class Kernel, class... Arguments>
  void run(Kernel* kernel, dim3 grid, int shared, const Arguments&... arguments) const {
    if (shared > 0) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    kernel<<<grid, threads, shared, stream>>>(arguments...);
    check(cudaGetLastError());
  }

  static dim3 grid(int64_t x, int y = 1, int z = 1) { return dim3(unsigned(x), unsigned(y), unsigned(z)); }

  template <class Element>
  void pack(const PackJobs& jobs, int64_t blocks, int count) const {
    run(residual_coupling_pack_kernel<Element>, grid(blocks, count), 0, jobs);
  }
};

inline View view(const Tensor& tensor) {
  const int64_t column = tensor.dim() == 2 ? tensor.stride(1) : 0;
  return {static_cast<const float*>(tensor.const_data_ptr()), tensor.stride(0), column};
}

inline Tensor new_floats(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}

inline float* floats(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

inline std::vector<Matrix> matrices(const std::vector<Tensor>& weights) {
  std::vector<Matrix> all;
  for (const Tensor& weight : weights) {
    all.push_back({weight.const_data_ptr(), weight.stride(0), weight.dim() == 2 ? weight.stride(1) : 0});
  }
  return all;
}

// What both directions are given. `pairs` is contiguous.
inline Problem describe(const Tensor& passive, int64_t active, const Tensor& table, const std::vector<Tensor>& weights,
                        const std::optional<Tensor>& pairs, bool passive_shared, const ScaleMap& map, int64_t count) {
  const ScalarType dtype = weights[0].scalar_type();
  const bool known = dtype == ScalarType::Float || dtype == ScalarType::BFloat16;
  STD_TORCH_CHECK(known && passive.scalar_type() == ScalarType::Float,
                  "residual_coupling: the CUDA kernels take a float32 passive and float32 or bfloat16 weights; ",
                  "call it under fastflow.backend(\"reference\")");
  STD_TORCH_CHECK(std::max({table.size(1), passive.size(1), active}) <= widest,
                  "residual_coupling: hidden, passive, active have ", table.size(1), ", ", passive.size(1), ", ",
                  active, " columns, expected at most ", widest, " for the CUDA kernels; ",
                  "call it under fastflow.backend(\"reference\")");
  STD_TORCH_CHECK(map.kind >= exponential && map.kind <= inverse_sigmoid, "residual_coupling: kind is ", map.kind,
                  ", expected one of ", int(exponential), " to ", int(inverse_sigmoid));
  Problem p = {};
  p.schedule.hidden = int(table.size(1)), p.schedule.passive = int(passive.size(1));
  p.schedule.active = int(active), p.schedule.blocks = int(weights.size() - 5) / 4;
  p.map = map;
  p.count = count, p.classes = table.size(0), p.passive_shared = passive_shared;
  p.pairs = pairs ? static_cast<const int64_t*>(pairs->const_data_ptr()) : nullptr;
  p.passive = view(passive), p.table = view(table);
  return p;
}

// Calls f(plan) with the plan of the weights' type.
template <class Launch, class F>
void with_plan(Launch& launch, const Problem& p, const std::vector<Tensor>& weights, F f) {
  const std::vector<Matrix> all = matrices(weights);
  if (weights[0].scalar_type() == ScalarType::BFloat16) {
    f(Plan<Bf16, Launch>{launch, p, all.data()});
  } else {
    f(Plan<float, Launch>{launch, p, all.data()});
  }
}

}  // namespace
}  // namespace fastflow::residual_coupling

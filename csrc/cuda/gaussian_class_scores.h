// The tensors of the Gaussian class ops as their kernels want them.
#pragma once

#include "cuda/thread_block.h"
#include "gaussian_class_plan.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>

namespace fastflow {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return Storage::float64;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Half: return Storage::float16;
    default: return Storage::float32;
  }
}

template <class T>
Matrix<T> matrix_of(const Tensor& x) {
  return matrix<T>(x.const_data_ptr(), storage_of(x), x.size(0), x.size(1), x.stride(0), x.stride(1));
}

template <class T>
Strided<T> strided_of(const MaybeTensor& x) {
  if (!x.has_value()) return {nullptr, 0, 0};
  return {static_cast<const T*>(x->const_data_ptr()), x->stride(0), x->dim() > 1 ? x->stride(1) : 0};
}

template <class T>
gaussian::Given<T> given_of(const Tensor& z, const Tensor& means, const Tensor& log_scales, const Tensor& log_prior,
                            const MaybeTensor& labels, const MaybeTensor& weights) {
  return {matrix_of<T>(z),
          matrix_of<T>(means),
          strided_of<T>(log_scales),
          strided_of<T>(log_prior),
          log_scales.size(0),
          log_scales.size(1),
          {strided_of<int64_t>(labels), strided_of<T>(weights)}};
}

template <class T>
T* data_of(const Tensor& result) {
  return static_cast<T*>(result.mutable_data_ptr());
}

}  // namespace fastflow

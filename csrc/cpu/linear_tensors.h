// Linear layers as their tensors give them to the kernels.
#pragma once

#include <algorithm>
#include <vector>

#include "linear.h"
#include "scratch.h"
#include "tensors.h"

namespace fastflow {

inline Features features(int64_t parts, int64_t size) {
  return {parts, size, round_up(std::max<int64_t>(size, 1), 32 / parts)};
}

inline Operand matrix(const Tensor& tensor) {
  return {static_cast<char*>(tensor.data_ptr()), dtype_of(tensor), tensor.stride(0), {tensor.stride(1)}};
}

// The vector's numbers, of `bytes` each, at the places of its features, and zeros at those that only fill.
inline void pad(char* to, const Tensor& vector, const Features& features, int64_t bytes) {
  std::fill_n(to, places(features) * bytes, 0);
  const char* const from = static_cast<const char*>(vector.data_ptr());
  for (int64_t i = 0; i < vector.size(0); ++i) {
    const int64_t place = i / features.size * features.pitch + i % features.size;
    std::copy_n(from + i * vector.stride(0) * bytes, bytes, to + place * bytes);
  }
}

// 32 columns each, of the matrices that are to be packed.
inline int64_t packing_units(const std::vector<Linear>& layers) {
  int64_t units = 0;
  for (const Linear& layer : layers) {
    units += (layer.packed == nullptr ? 0 : places(layer.out) / 32) +
             (layer.transposed == nullptr ? 0 : places(layer.in) / 32);
  }
  return units;
}

}  // namespace fastflow

// Tensors as the kernels of csrc/cpu/isa want them: described once, allocated without the dispatcher, rows to threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <functional>

#include "instruction_set.h"
#include "noise_key.h"
#include "row_op.h"

namespace fastflow {

using torch::stable::Tensor;

constexpr int64_t grain = 32768;  // elements below which a second thread costs more than it saves

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Double: return float64;
    case torch::headeronly::ScalarType::BFloat16: return bfloat16;
    case torch::headeronly::ScalarType::Half: return float16;
    case torch::headeronly::ScalarType::Bool: return boolean;
    default: return float32;
  }
}

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Uninitialised, contiguous or with the channels last, without a trip through the dispatcher.
inline Tensor allocate(Sizes sizes, int32_t dtype, bool channels_last = false) {
  const size_t dims = sizes.size();
  int64_t strides[max_dims + 1], stride = 1;
  const auto place = [&](size_t d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  };
  if (channels_last) place(1);
  for (size_t d = dims; d-- > 0;) {
    if (d != 1 || !channels_last) place(d);
  }
  AtenTensorHandle empty = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes.data(), strides, dtype, aoti_torch_device_type_cpu(), 0, &empty));
  return Tensor(empty);
}

inline int32_t native_dtype(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

// The number that libtorch gives a dtype; its headers may give it another.
inline int32_t native_dtype(torch::headeronly::ScalarType dtype) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
}

// As torch.empty_like.
inline Tensor allocate_like(const Tensor& like) {
  const auto strides = like.strides();
  const bool descending = std::adjacent_find(strides.begin(), strides.end(), std::less_equal<>()) == strides.end();
  if (!descending && !like.is_contiguous()) return torch::stable::empty_like(like);
  return allocate(like.sizes(), native_dtype(like));
}

inline bool has_channels_last(const Tensor& x) { return x.dim() >= 4 && x.stride(1) < x.stride(x.dim() - 1); }

// As fastflow.ops.packing.empty_channels.
inline Tensor allocate_channels(const Tensor& like, int64_t channels) {
  int64_t sizes[max_dims + 1];
  std::copy(like.sizes().begin(), like.sizes().end(), sizes);
  sizes[1] = channels;
  return allocate({sizes, static_cast<size_t>(like.dim())}, native_dtype(like), has_channels_last(like));
}

// [B], in the dtype of log-determinants.
inline Tensor allocate_log_det(const Tensor& x) {
  return allocate(x.sizes().slice(0, 1),
                  dtype_of(x) == float64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
}

// Channels first, first + step, ... of a tensor [B, C, *spatial].
inline Operand channels(const Tensor& tensor, int64_t first, int64_t step) {
  const auto strides = tensor.strides();
  Operand operand = {static_cast<char*>(tensor.data_ptr()), dtype_of(tensor), strides[0], {}};
  for (size_t d = 1; d < strides.size(); ++d) operand.stride[d - 1] = strides[d];
  operand.data += first * strides[1] * bytes_of[operand.dtype];
  operand.stride[0] *= step;
  return operand;
}

// A matrix whose rows' numbers lie side by side.
inline Tensor with_dense_rows(const Tensor& x) {
  return x.size(1) == 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
}

// Dims in the order of the strides of operand[by], innermost first, without those of size 1, and with two merged into
// one wherever every operand lets them.
inline void simplify(int& dims, int64_t* size, Operand* operand, int operands, int by) {
  int order[max_dims], count = 0;
  for (int d = dims - 1; d >= 0; --d) {
    if (size[d] == 1 && (d > 0 || count > 0)) continue;
    int place = count++;
    for (; place > 0 && operand[by].stride[order[place - 1]] > operand[by].stride[d]; --place) {
      order[place] = order[place - 1];
    }
    order[place] = d;
  }
  int64_t sizes[max_dims], strides[ROLES][max_dims];
  dims = 0;
  for (int n = 0; n < count; ++n) {
    const int d = order[n], last = dims - 1;
    bool merges = n > 0;
    for (int k = 0; k < operands && merges; ++k) {
      merges = operand[k].data == nullptr || operand[k].stride[d] == strides[k][last] * sizes[last];
    }
    if (merges) {
      sizes[last] *= size[d];
      continue;
    }
    sizes[dims] = size[d];
    for (int k = 0; k < operands; ++k) strides[k][dims] = operand[k].stride[d];
    ++dims;
  }
  for (int d = 0; d < dims; ++d) {
    size[d] = sizes[d];
    for (int k = 0; k < operands; ++k) operand[k].stride[d] = strides[k][d];
  }
}

// seed and step hold one int64 each, rows [B].
inline NoiseKey noise_key(const Tensor& seed, const Tensor& step, const Tensor& rows) {
  const auto value = [](const Tensor& scalar) { return *static_cast<const int64_t*>(scalar.data_ptr()); };
  return {static_cast<uint64_t>(value(seed)), static_cast<uint32_t>(value(step)),
          static_cast<const int64_t*>(rows.data_ptr()), rows.stride(0)};
}

// Op is a RowOp; kernel(op, first_row, last_row) gets every row once.
template <class Op>
void over_rows(const Op& op, void (*kernel)(const Op&, int64_t, int64_t)) {
  torch::stable::parallel_for(0, op.rows, std::max<int64_t>(1, grain / moved_of_row(op)),
                              [&](int64_t first, int64_t last) { kernel(op, first, last); });
}

// The kernel of that name for this CPU.
#if defined(__x86_64__)
#define FASTFLOW_KERNEL(name)                                              \
  (instruction_set() == InstructionSet::avx512 ? avx512::name              \
   : instruction_set() == InstructionSet::avx2 ? avx2::name : baseline::name)
#else
#define FASTFLOW_KERNEL(name) (baseline::name)
#endif

}  // namespace fastflow

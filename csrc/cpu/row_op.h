// What every CPU kernel that works on rows [B, ...] is given: pointers, sizes and strides, no tensors.
#pragma once

#include <cstdint>

namespace fastflow {

enum Dtype : uint8_t { float64, float32, bfloat16, float16, boolean };
constexpr int64_t bytes_of[] = {8, 4, 2, 2, 1};

// What an operand is to the formulas. In backward X is grad_z and Z is grad_x. Those from Z on are written.
enum Role { X, SAVED, SCALE, SHIFT, GAIN, MASK, Z, GRAD_SCALE, GRAD_SHIFT, GRAD_GAIN, ROLES };

constexpr int max_dims = 4;  // of one row

// Strides are in elements.
struct Operand {
  char* data;  // nullptr: absent
  Dtype dtype;
  int64_t row_stride;
  int64_t stride[max_dims];
};

// Passive elements, copied as they are.
struct Copy {
  int dims;
  int64_t size[max_dims];  // of one row; the innermost dim is dim 0
  Operand operand[2];      // from, to
};

struct RowOp {
  bool in_double;  // compute in double; otherwise in float, whatever the storage
  int64_t rows;
  int dims;
  int64_t size[max_dims];  // of the active part of one row; the innermost dim is dim 0
  Operand operand[ROLES];

  int copies;
  Copy copy[2];

  const void* log_det;  // the running log_det, or grad_log_det in backward; nullptr: zeros
  int64_t log_det_stride;
  void* log_det_out;

  int64_t gains;  // GRAD_GAIN is so many sums followed by what their roundings lost
};

// Internal linkage: the copies of several instruction sets must not be merged.
static inline int64_t elements_of_row(const RowOp& op) {
  int64_t elements = 1;
  for (int d = 0; d < op.dims; ++d) elements *= op.size[d];
  return elements;
}

// With those that are only copied.
static inline int64_t moved_of_row(const RowOp& op) {
  int64_t moved = elements_of_row(op);
  for (const Copy* copy = op.copy; copy < op.copy + op.copies; ++copy) {
    int64_t elements = 1;
    for (int d = 0; d < copy->dims; ++d) elements *= copy->size[d];
    moved += elements;
  }
  return moved;
}

}  // namespace fastflow

// Declares a kernel of csrc/cpu/isa, compiled once per instruction set: void name(const Op&, first_row, last_row).
#define FASTFLOW_DECLARE_KERNEL(name, Op)                                            \
  namespace fastflow::baseline { void name(const Op&, int64_t first_row, int64_t last_row); } \
  namespace fastflow::avx2 { void name(const Op&, int64_t first_row, int64_t last_row); }     \
  namespace fastflow::avx512 { void name(const Op&, int64_t first_row, int64_t last_row); }

// What the CPU kernels of affine_coupling are given: pointers, sizes and strides, no tensors.
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

struct AffineCoupling {
  bool in_double;  // compute in double; otherwise in float, whatever the storage
  int kind;        // the index in fastflow.ops.affine_coupling.KINDS
  double bias, eps, clamp;
  bool shift_first, inverse, from_input;

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

// Compiled once per instruction set from csrc/cpu/isa.
#define FASTFLOW_DECLARE(isa)                                                                \
  namespace isa {                                                                            \
  void affine_coupling(const AffineCoupling&, int64_t first_row, int64_t last_row);          \
  void affine_coupling_backward(const AffineCoupling&, int64_t first_row, int64_t last_row); \
  }
FASTFLOW_DECLARE(baseline)
FASTFLOW_DECLARE(avx2)
FASTFLOW_DECLARE(avx512)
#undef FASTFLOW_DECLARE

}  // namespace fastflow

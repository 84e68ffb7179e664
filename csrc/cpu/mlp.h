// What the CPU kernels of mlp are given.
#pragma once

#include "cpu/linear.h"

namespace fastflow {

struct Mlp {
  bool in_double;
  double slope;  // of the activation below 0
  int layers;
  Linear* layer;
  int64_t rows;
  Operand x;         // [rows, features], a row's numbers side by side
  void* out;         // [rows, features]
  char* hidden;      // [rows, pitch], the activations of all layers but the last side by side, each padded to its places
  int64_t hidden_pitch;
  bool keeps_hidden;  // else `hidden` is a thread's, for one tile

  // Backward. A chunk's rows are those whose gradients `grad_hidden` holds for the gradients of the weights.
  Operand grad_out;
  void* grad_x;         // [rows, features]; nullptr: not wanted
  char* grad_hidden;    // [chunk, hidden_pitch]
  char* padded_x;       // [chunk, row pitch]; nullptr: x has so many numbers that it can be read as it is
  int64_t chunk_first, chunk_rows;
};

}  // namespace fastflow

// Units are 32 columns of a packed matrix; rows; rows of a chunk; 32 columns of a weight's gradient.
FASTFLOW_DECLARE_KERNEL(mlp_pack, Mlp)
FASTFLOW_DECLARE_KERNEL(mlp, Mlp)
FASTFLOW_DECLARE_KERNEL(mlp_backward, Mlp)
FASTFLOW_DECLARE_KERNEL(mlp_weights, Mlp)

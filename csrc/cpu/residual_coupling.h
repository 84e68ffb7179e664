// What the CPU kernels of residual_coupling are given.
#pragma once

#include "cpu/linear.h"

namespace fastflow {

// The inputs of a network's layers, the first one's `x` and the hidden ones', each [capacity, row pitch]; in backward
// also the gradients of the layers' outputs, the hidden ones' and the last one's.
struct Activations {
  char *x, *hidden, *grad_hidden, *grad_last;
  int64_t capacity;
  int hidden_count;  // those of forward use two in turn
};

struct ResidualCoupling {
  Products products;
  int kind;  // the index in fastflow.ops.scale_map.KINDS
  double bias, eps, clamp;
  bool shift_first, passive_shared, active_shared;
  int64_t rows, classes;
  const int64_t* pairs;  // nullptr: every pair
  int64_t pairs_stride;
  int layers;  // the first, two for each block, the last
  Linear* layer;
  const void* table;               // [classes, hidden]
  char *norm_shift, *norm_scale;   // [places of hidden]

  Operand passive, active;                      // backward: `active` is z
  const void* log_det;                          // or grad_log_det; nullptr: zeros
  int64_t log_det_stride;
  void *z, *log_det_out;                        // forward
  Operand grad_z;                               // backward, and so are all below
  void *active_out, *grad_active, *grad_passive, *grad_table, *grad_norm_shift, *grad_norm_scale;
  int64_t chunk_first, chunk_rows;  // the results whose activations `chunk` holds for the gradients of the weights

  // Of a thread: numbers for a tile. `tile` is `chunk` where that holds activations as the products read them.
  Activations tile, chunk;
  char *distinct, *h, *made;  // [tile_rows, row pitch], `made` of the hidden or the last features, whichever are more
  char* line;                 // two rows of `active`, or one of `passive`
};

}  // namespace fastflow

// Units are 32 columns of a packed matrix; results; results; 32 columns of a weight's gradient.
FASTFLOW_DECLARE_KERNEL(residual_coupling_pack, ResidualCoupling)
FASTFLOW_DECLARE_KERNEL(residual_coupling, ResidualCoupling)
FASTFLOW_DECLARE_KERNEL(residual_coupling_backward, ResidualCoupling)
FASTFLOW_DECLARE_KERNEL(residual_coupling_weights, ResidualCoupling)

// What the CPU kernels of residual_coupling are given.
#pragma once

#include "cpu/row_op.h"

namespace fastflow {

// What the matrix products are computed in. Everything else is float, or double where they are.
enum class Products : uint8_t { in_double, in_float, in_bfloat16, of_bfloat16_in_float };

constexpr int64_t tile_rows = 112;  // results that stay in the L2 through a conditioner

// `parts` runs of features side by side, each of `size` and padded to `pitch`; their places are a multiple of 32.
struct Features {
  int64_t parts, size, pitch;
};

// Internal linkage: the copies of several instruction sets must not be merged.
static inline int64_t places(const Features& features) { return features.parts * features.pitch; }
// A power of two from one row to the next would leave most of the L1 unused.
static inline int64_t row_pitch(const Features& features) { return places(features) + 16; }

struct Linear {
  Operand weight;  // [out, in]
  Features in, out;
  char *packed, *transposed;  // what the products of forward, and of backward, read
  char* bias;                 // [places of out]; nullptr: none, as in the first layer
  void *grad, *grad_bias;     // backward
};

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

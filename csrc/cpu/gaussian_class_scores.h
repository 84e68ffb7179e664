#pragma once

#include "row_op.h"

namespace fastflow {

// Every dtype's padded width: a multiple of each instruction set's vectors.
static constexpr int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }

struct Strided {
  const void* data;
  int64_t row, column;
};

// The classes are worked off in blocks; `first_class`, `block_classes` and what follows belong to the present one.
struct GaussianClasses {
  bool in_double;
  bool scaled;           // the scale varies with the feature, or is too far from 1 to be multiplied by at the end
  int64_t rows, classes, features;
  const char* z;
  Dtype z_dtype;
  int64_t z_row, z_feature;             // strides
  Strided means, log_scales;            // [K, D]; stride 0 where one number serves many
  const void* log_prior;
  int64_t prior_stride;
  const int64_t* labels;                // [rows]; nullptr: none
  Strided weights;                      // [rows, K]

  int64_t first_class, block_classes;
  int64_t lane_classes;                 // for the energies the first so many classes are lanes, of the others features are
  void *mean, *inverse_scale;           // for the energies; both padded
  void *mean_of, *inverse_scale_of;     // backward: [block_classes, features padded]; may be the same
  // score = constant - factor energy + rest. The rest is what rounding took from the constant: the same for every row, it
  // would add up in sums over rows.
  void *constant, *factor, *rest;       // [block_classes]
  bool last_block;

  void* packed;                         // z in the dtype of arithmetic where it cannot be read as it lies; see the kernels

  void *marginal, *sum, *picked;        // [rows]; before the last block the running maximum and the sum beside it
  void* scores;                         // [rows, K]; nullptr: not asked for

  // Backward walks over the rows in parts of which this is one.
  int64_t first_row, part_rows, part_pitch;
  const void* saved_marginal;           // [rows]
  Strided saved_scores;                 // [rows, K]; nullptr: to be computed again
  Strided grad_marginal, grad_picked, grad_scores;  // [rows], [rows], [rows, K]; nullptr: none
  void *coefficient, *energy;           // [block_classes, part_pitch]: d loss / d score; sum of squares, or nullptr
  void* grad_z;                         // [part_rows, features], in the dtype of arithmetic; nullptr: not asked for
  char* narrow_grad_z;                  // the same in z's dtype, once it is complete; nullptr where that is the same
  void* sums;                           // see gaussian_class_gradients; nullptr: not asked for
  void* grad_weights;                   // [rows, K]; nullptr: not asked for
  void *grad_means, *grad_log_scales, *grad_log_prior;  // [K, D], [K, D] where scaled else [K], [K]
};

// Backward: rows summed by themselves, before another slice's sums are added; features of a unit of work.
constexpr int64_t gaussian_slice_rows = 256, gaussian_unit_features = 64;

}  // namespace fastflow

// The unit is a class of the block, up to its padded number.
FASTFLOW_DECLARE_KERNEL(gaussian_class_block, GaussianClasses)
// Rows. `packed` is a tile of them, the thread's own.
FASTFLOW_DECLARE_KERNEL(gaussian_class_scores, GaussianClasses)
// Rows of the part. `packed` is the whole part.
FASTFLOW_DECLARE_KERNEL(gaussian_class_coefficients, GaussianClasses)
// The unit is a slice of the part's rows and gaussian_unit_features features, of one slice all features first. Adds to
// grad_z and leaves in sums [slices, block_classes, 2, features padded] those of coefficient (z - mean) and, where
// scaled, of coefficient (z - mean)^2.
FASTFLOW_DECLARE_KERNEL(gaussian_class_gradients, GaussianClasses)
// The unit is a class of the block: adds the part's sums to the parameters' gradients.
FASTFLOW_DECLARE_KERNEL(gaussian_class_parameters, GaussianClasses)

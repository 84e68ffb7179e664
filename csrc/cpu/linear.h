// A network's linear layers as the CPU kernels are given them.
#pragma once

#include "cpu/row_op.h"

namespace fastflow {

// What the matrix products are computed in. Everything else is float, or double where they are.
enum class Products : uint8_t { in_double, in_float, in_bfloat16, of_bfloat16_in_float };

constexpr int64_t tile_rows = 112;  // rows that stay in the L2 through a conditioner

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
  char* bias;                 // [places of out]; nullptr: none
  void *grad, *grad_bias;     // backward
};

}  // namespace fastflow

// What the CPU kernel of uniform_noise is given.
#pragma once

#include "cpu/noise_key.h"
#include "cpu/row_op.h"

namespace fastflow {

struct UniformNoise : RowOp {
  NoiseKey key;
  void* noise;  // dense
};

}  // namespace fastflow

FASTFLOW_DECLARE_KERNEL(uniform_noise, UniformNoise)

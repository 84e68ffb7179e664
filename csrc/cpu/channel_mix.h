// What the CPU kernels of channel_mix are given.
#pragma once

#include "cpu/row_op.h"

namespace fastflow {

constexpr int most_channels = 64;
// Numbers of a tile of pixels, their channels rounded up to 16.
constexpr int64_t tile_capacity = 16384;

// Channels first, first + step, ... of every pixel. Strides are in elements; that of the channels, or of the pixels, is 1,
// or else the pixels are every second one of every second line.
struct Channels {
  char* data;
  int64_t row_stride, channel_stride, pixel_stride;
  int count, first, step;
  int64_t width, line_stride;  // width 0: pixel_stride leads from each pixel to the next
};

// All channels of every pixel: in one tensor, in two, or in one with four pixels for each.
struct Pixels {
  Dtype dtype;
  Channels part[4];
};

struct ChannelMix {
  bool in_double;      // compute in double; otherwise in float, whatever the storage
  bool channels_last;  // 1 is the stride of the channels, otherwise that of the pixels
  int channels;
  int64_t pixels, tile, tiles;  // of a row
  Pixels x, z;                  // in backward grad_z and grad_x
  const void* matrix;           // [channels, channels]
  const void* center;           // [channels], subtracted from x; nullptr: 0
  const void* shift;            // [channels], added to z; nullptr: 0

  Pixels saved;  // backward: x
  double* sums;  // backward: [channels, channels] of grad_matrix, then [channels] of grad_shift
  void* lanes;   // backward: scratch for as many sums, channels rounded up to 4, of a vector each
};

}  // namespace fastflow

// The unit of first_row and last_row is a tile.
FASTFLOW_DECLARE_KERNEL(channel_mix, ChannelMix)
FASTFLOW_DECLARE_KERNEL(channel_mix_backward, ChannelMix)

// What the kernels of residual_coupling are given, and how they lay out what they share.
//
// The weights of a half-step are packed once a call into slices, in the order in which a tile's products read them: a
// slice is `width` outputs by 64 bytes of inputs, padded with zeros, so that a tile streams it as it lies, knows no
// ragged width and no stride, and never waits between two layers. The rows of the last layer alternate, s of column 0,
// t of column 0, s of column 1, ...: a thread that has one has the other.
#pragma once

#include <cstdint>

#include "residual_coupling/scale_map.h"

namespace fastflow::residual_coupling {

constexpr int widest = 512;         // hidden, passive or active columns that a tile takes
constexpr int threads = 256;        // of every block
constexpr int slice_row_bytes = 64;
constexpr int most_jobs = 32;       // of one launch

FASTFLOW_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTFLOW_HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Bf16 {
  uint16_t bits;
};

template <class T>
struct alignas(2 * sizeof(T)) PairOf {
  T first, second;
};
using Pair = PairOf<float>;

// To the nearest, ties to even.
FASTFLOW_HOST_DEVICE inline uint32_t bf16_pair(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  const auto rounded = [](float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    return value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fffu;
  };
  return rounded(first) | rounded(second) << 16;
#endif
}

FASTFLOW_HOST_DEVICE inline void store_pair(float* to, Pair pair) { *reinterpret_cast<Pair*>(to) = pair; }
FASTFLOW_HOST_DEVICE inline void store_pair(Bf16* to, Pair pair) {
  *reinterpret_cast<uint32_t*>(to) = bf16_pair(pair.first, pair.second);
}
FASTFLOW_HOST_DEVICE inline Pair load_pair(const float* from) { return *reinterpret_cast<const Pair*>(from); }
FASTFLOW_HOST_DEVICE inline Pair load_pair(const Bf16* from) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(from);
  return {bits_as<float>(pair << 16), bits_as<float>(pair & 0xffff0000u)};
}
FASTFLOW_HOST_DEVICE inline float load_one(const float* from) { return *from; }
FASTFLOW_HOST_DEVICE inline float load_one(const Bf16* from) { return bits_as<float>(uint32_t(from->bits) << 16); }

// The 16 bytes of a slice's row, of its four, in which chunk `chunk` lies: eight neighbouring rows of one chunk are in
// different banks.
FASTFLOW_HOST_DEVICE constexpr int swizzled(int row, int chunk) { return chunk ^ (row >> 1 & 3); }

struct View {
  const float* data;
  int64_t row, column;  // strides
  FASTFLOW_HOST_DEVICE float at(int64_t r, int64_t c) const { return data[r * row + c * column]; }
};

// How many slices and passes each product of a half-step takes. A pass is `width` outputs.
struct Schedule {
  int width, depth;  // outputs and inputs of a slice
  int hidden, passive, active, blocks;

  FASTFLOW_HOST_DEVICE int hidden_slices() const { return int(ceil_div(hidden, depth)); }
  FASTFLOW_HOST_DEVICE int passive_slices() const { return int(ceil_div(passive, depth)); }
  FASTFLOW_HOST_DEVICE int made_slices() const { return int(ceil_div(2 * active, depth)); }
  FASTFLOW_HOST_DEVICE int made_passes() const { return int(ceil_div(2 * active, width)); }
  FASTFLOW_HOST_DEVICE int passive_passes() const { return int(ceil_div(passive, width)); }
  FASTFLOW_HOST_DEVICE int rectified() const { return 2 * blocks + 1; }  // how many layers a rectifier feeds
  FASTFLOW_HOST_DEVICE int forward_slices() const {
    return passive_slices() + (2 * blocks + made_passes()) * hidden_slices();
  }
  FASTFLOW_HOST_DEVICE int backward_slices() const {
    return forward_slices() + made_slices() + (2 * blocks + passive_passes()) * hidden_slices();
  }
  // Floats: b1 and b2 of each block, norm_shift, norm_scale, then b3.
  FASTFLOW_HOST_DEVICE int64_t vector(int index) const { return int64_t(index) * width; }
  FASTFLOW_HOST_DEVICE int64_t vectors() const { return vector(2 * blocks + 2 + made_passes()); }
};

// What the backward pass of a chunk of results leaves for the gradients of the weights: matrices of `rows` rows, the
// results and what fills the last tile.
template <class Element>
struct Workspace {
  Element* data;
  int64_t rows;
  int hidden, made, passive, layers;  // columns; layers = Schedule::rectified()

  FASTFLOW_HOST_DEVICE static Workspace of(const Schedule& s, int tile_rows, int64_t count, Element* data) {
    return {data, round_up(count, tile_rows), s.width, int(round_up(2 * s.active, 32)), int(round_up(s.passive, 32)),
            s.rectified()};
  }
  FASTFLOW_HOST_DEVICE int64_t inputs(int layer) const { return layer * rows * hidden; }
  FASTFLOW_HOST_DEVICE int64_t deltas(int layer) const { return (layers + layer) * rows * hidden; }
  FASTFLOW_HOST_DEVICE int64_t norms() const { return 2 * layers * rows * hidden; }  // terms of norm_scale's gradient
  FASTFLOW_HOST_DEVICE int64_t made_deltas() const { return (2 * layers + 1) * rows * hidden; }
  FASTFLOW_HOST_DEVICE int64_t passives() const { return made_deltas() + rows * made; }
  FASTFLOW_HOST_DEVICE int64_t elements() const { return passives() + rows * passive; }
};

struct Problem {
  Schedule schedule;
  ScaleMap map;
  int64_t first, count;  // of the results: those of this launch
  int64_t classes;
  bool passive_shared, active_shared;
  const int64_t* pairs;  // null: every pair
  View passive, active, table, log_det;
  View first_layer;  // [B, H]: W0 passive of each row, if computed; else null
  const char* slices;
  int slice_count;
  const float* vectors;
  float *z, *log_det_out;  // [N, A], [N]
  // Backward only.
  View given_z, grad_z, grad_log_det;
  float *active_out, *grad_active, *grad_passive;  // [N, A], [N, A], [N, P]
  void* workspace;
  int* workspace_class;  // [count]
};

}  // namespace fastflow::residual_coupling

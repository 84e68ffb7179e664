// Matrix products of a block: eight warps, 16 m_tiles x 64 sums each, inputs in shared memory, weights streamed.
//
// `Block` is the calling thread's place in its block and the instructions of the tensor cores: PTX on a GPU
// (cuda/tensor_cores.h), 32 lanes in step on a host (tests/native/warps.h). One sum of m16n8k16 (bf16) or m16n8k8
// (tf32) takes 32 bytes of 16 rows and of 8 columns, so that both types have the same addresses.
#pragma once

#include "residual_coupling/problem.h"

namespace fastflow::residual_coupling {

// What a product takes of a fragment of one type.
template <class Element, int count>
struct Operand {
  uint32_t whole[count];
  FASTFLOW_HOST_DEVICE void take(const uint32_t* bits) {
#pragma unroll
    for (int i = 0; i < count; ++i) whole[i] = bits[i];
  }
};

// A float as the sum of two tf32, 11 bits each: all but the last bit or two.
template <int count>
struct Operand<float, count> {
  uint32_t high[count], low[count];
  FASTFLOW_HOST_DEVICE void take(const uint32_t* bits) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      high[i] = (bits[i] + 0x1000) & 0xffffe000u;
      low[i] = bits_as<uint32_t>(bits_as<float>(bits[i]) - bits_as<float>(high[i]));
    }
  }
};

template <class Block>
FASTFLOW_HOST_DEVICE void multiply_add(const Block& block, float (&sum)[4], const Operand<Bf16, 4>& a,
                                       const Operand<Bf16, 2>& b) {
  block.multiply_bf16(sum, a.whole, b.whole);
}

// The tensor cores round their sums toward zero: only the sum of eight terms is left to them.
template <class Block>
FASTFLOW_HOST_DEVICE void multiply_add(const Block& block, float (&sum)[4], const Operand<float, 4>& a,
                                       const Operand<float, 2>& b) {
  float part[4] = {0, 0, 0, 0};
  block.multiply_tf32(part, a.low, b.high);
  block.multiply_tf32(part, a.high, b.low);
  block.multiply_tf32(part, a.high, b.high);
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += part[i];
}

// A tile: warp_columns warps side by side make its `width` columns, the others its rows.
template <class E, int m_tiles_, int warp_columns_>
struct Shape {
  using Element = E;
  static constexpr int m_tiles = m_tiles_, warp_columns = warp_columns_, warps = threads / 32;
  static constexpr int rows = warps / warp_columns * m_tiles * 16, width = 64 * warp_columns;
  static constexpr int stages = warp_columns == 8 ? 2 : 3;
  static constexpr int depth = slice_row_bytes / sizeof(Element);
  static constexpr int unrolled_steps = sizeof(Element) == 2 ? 2 : 1;  // two of the longer one do not fit in registers
  static constexpr int piece = width / depth;  // slices that the inputs in shared memory serve
  static constexpr int slice_bytes = width * slice_row_bytes;
  static constexpr int input_stride = width * sizeof(Element) + 16;  // eight rows in different banks
  static constexpr int pair_stride = 66;                             // floats
  static constexpr int input_bytes = rows * input_stride, ring_bytes = stages * slice_bytes;
  static constexpr int pair_bytes = warps * 16 * pair_stride * sizeof(float);
  static constexpr int shared_bytes = input_bytes + ring_bytes + pair_bytes + rows * (sizeof(int64_t) + sizeof(int));
};

// The sums of one warp in the layout of the instruction: lane l has rows l / 4 and l / 4 + 8 of each 16, columns
// 2 (l % 4) and the next of each 8.
template <class Shape>
struct Fragment {
  float value[Shape::m_tiles][8][4] = {};
  FASTFLOW_HOST_DEVICE Pair pair(int i, int j, int half) const {
    return {value[i][j][2 * half], value[i][j][2 * half + 1]};
  }
  FASTFLOW_HOST_DEVICE void set(int i, int j, int half, Pair pair) {
    value[i][j][2 * half] = pair.first, value[i][j][2 * half + 1] = pair.second;
  }
};

// Where the sums of a warp are in the tile.
template <class Shape>
struct Place {
  int lane, warp, row, column;
  FASTFLOW_HOST_DEVICE explicit Place(int thread)
      : lane(thread % 32), warp(thread / 32), row(warp / Shape::warp_columns * Shape::m_tiles * 16),
        column(warp % Shape::warp_columns * 64) {}
};

// Calls use(i, j, half, row, column) for each pair of sums of this thread. What one column loads does not wait in
// registers for the others.
template <class Shape, class Block, class Use>
FASTFLOW_HOST_DEVICE void each(const Block& block, Use use) {
  const Place<Shape> at(block.thread());
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    block.fence();
#pragma unroll
    for (int i = 0; i < Shape::m_tiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        use(i, j, half, at.row + 16 * i + 8 * half + at.lane / 4, at.column + 8 * j + 2 * (at.lane % 4));
      }
    }
  }
}

template <class Shape, class Block>
struct Products {
  using Element = typename Shape::Element;
  Block block;
  char *inputs, *ring;  // shared
  const char* slices;
  int slice_count, consumed = 1 - Shape::stages;  // slices; those on their way do not count

  FASTFLOW_HOST_DEVICE Products(const Block& block, char* shared, const char* slices, int slice_count)
      : block(block), inputs(shared), ring(shared + Shape::input_bytes), slices(slices), slice_count(slice_count) {
    for (; consumed < 0; ++consumed) fetch();
  }

  FASTFLOW_HOST_DEVICE void fetch() {
    const int slice = consumed + Shape::stages - 1;
    if (slice < slice_count) {
      const char* from = slices + int64_t(slice) * Shape::slice_bytes;
      char* to = ring + slice % Shape::stages * Shape::slice_bytes;
      static_assert(Shape::slice_bytes % (threads * 16) == 0, "every thread copies as often");
      const int own = block.thread() * 16;
#pragma unroll
      for (int at = 0; at < Shape::slice_bytes; at += threads * 16) block.copy(to + at + own, from + at + own, true);
    }
    block.commit();
  }

  // The next slice; and one is on its way into the place of the slice before it, which all have left.
  FASTFLOW_HOST_DEVICE const char* next() {
    block.template wait<Shape::stages - 2>();
    block.barrier();
    fetch();
    return ring + consumed++ % Shape::stages * Shape::slice_bytes;
  }

  FASTFLOW_HOST_DEVICE Element* input(int row, int column) const {
    return reinterpret_cast<Element*>(inputs + row * Shape::input_stride) + column;
  }

  // sum += inputs times the next `count` slices.
  FASTFLOW_HOST_DEVICE void multiply(Fragment<Shape>& sum, int count) {
    const Place<Shape> at(block.thread());
    const char* a_row = inputs + (at.row + at.lane % 16) * Shape::input_stride + at.lane / 16 * 16;
    const int b_row = at.column + at.lane % 8 + at.lane / 16 * 8, b_chunk = at.lane / 8 % 2;
#pragma unroll 1
    for (int slice = 0; slice < count; ++slice, a_row += slice_row_bytes) {
      const char* weights = next();
#pragma unroll(Shape::unrolled_steps)
      for (int step = 0; step < 2; ++step) {
        Operand<Element, 4> a[Shape::m_tiles];
#pragma unroll
        for (int i = 0; i < Shape::m_tiles; ++i) {
          uint32_t bits[4];
          block.load(bits, a_row + 16 * i * Shape::input_stride + 32 * step);
          a[i].take(bits);
        }
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
          uint32_t bits[4];
          block.load(bits, weights + (b_row + 8 * j) * slice_row_bytes + swizzled(b_row, 2 * step + b_chunk) * 16);
          Operand<Element, 2> left, right;
          left.take(bits), right.take(bits + 2);
#pragma unroll
          for (int i = 0; i < Shape::m_tiles; ++i) {
            multiply_add(block, sum.value[i][j], a[i], left);
            multiply_add(block, sum.value[i][j + 1], a[i], right);
          }
        }
      }
    }
  }
};

}  // namespace fastflow::residual_coupling

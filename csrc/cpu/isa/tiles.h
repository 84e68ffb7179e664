// Cuts the rows of a RowOp into tiles whose operands are dense vectors of the compute dtype.
//
// A tile is a box [outer, inner]. An operand with unit stride and the compute dtype is used where it lies; any other is
// packed into a small buffer before the tile runs, or unpacked from one after it, so that the element formulas meet one
// layout only. Three shapes of tile, by the shape of a row after its dims were coalesced:
//   one dim                 outer = rows, inner = the row
//   several dims            outer and inner = two dims of one row, the others are looped over
//   fewer than 16 elements  outer = a dim of the row, inner = rows, so that a lane is a row
#pragma once

#include "convert.h"
#include "passive.h"

namespace fastflow::FASTFLOW_ISA {

// Passive bytes of each row of a tile.
struct Line {
  const char* from;
  char* to;
  int64_t bytes, from_pitch, to_pitch;
};

template <class T>
struct Tile {
  T* data[ROLES];  // nullptr where absent; MASK points to bytes
  int64_t pitch[ROLES];
  int64_t outer, inner;
  bool outer_is_rows;
  bool constant_gain;  // along inner
  bool continues;      // an earlier tile holds elements of the same rows
  int lines;
  Line line[2];
};

inline void add(double& sum, double& lost, double value) {
  const double total = sum + value, added = total - sum;
  lost += (sum - (total - added)) + (value - added);
  sum = total;
}

// Sums over what `sum` does not span: the outer dim where its outer stride is 0, the inner where its inner stride is.
template <class T>
void accumulate(double* sum, double* lost, const T* from, const Box& box) {
  for (int64_t o = 0; o < box.outer; ++o, from += box.inner) {
    const int64_t place = o * box.outer_stride;
    if (box.inner_stride == 1) {
      for (int64_t i = 0; i < box.inner; ++i) add(sum[place + i], lost[place + i], from[i]);
    } else if (box.inner_stride == 0) {
      Vec<T> run = {};
      int64_t i = 0;
      for (; i + width<T> <= box.inner; i += width<T>) run += load(from + i);
      if (i < box.inner) run += load(from + i, static_cast<int>(box.inner - i));
      for (int lane = 0; lane < width<T>; ++lane) add(sum[place], lost[place], run[lane]);
    }
  }
}

template <class T>
class Tiles {
 public:
  explicit Tiles(const RowOp& c) : c_(c) {
    lanes_are_rows = elements_of_row(c) < 16;
    order_axes();
    for (int role = 0; role < ROLES; ++role) {
      if (c.operand[role].data == nullptr) continue;
      present_[present_count_++] = static_cast<Role>(role);
      const Dtype dtype = role == MASK ? boolean : native<T>;
      const int64_t stride_inside = stride(role, 0);
      const bool readable = stride_inside == 1 || (role == GAIN && stride_inside == 0);
      direct_[role] = role != GRAD_GAIN && c.operand[role].dtype == dtype && readable;
      packing_ |= !direct_[role];
    }
    find_interleaved();
    copies_in_lines_ = order_[1] == row_axis;
    for (int n = 0; n < c.copies; ++n) copies_in_lines_ &= is_line(c.copy[n]);
  }

  // Calls run(tile, row), row the index in the block of the tile's first row, for all tiles of `rows` rows.
  template <class Run>
  void for_each(int64_t first_row, int64_t rows, Run run) {
    const int64_t outer = size(1, rows), inner = size(0, rows);
    const int64_t inner_step = packing_ ? smaller(inner, capacity) : inner;
    const int64_t outer_step = packing_ ? capacity / inner_step : outer;
    const bool outer_is_rows = order_[1] == row_axis;
    for (int n = 0; n < c_.copies && !copies_in_lines_; ++n) {
      for (int64_t row = first_row; row < first_row + rows; ++row) copy_row(c_.copy[n], row);
    }
    int64_t loops = 1;
    for (int axis = 2; axis <= c_.dims; ++axis) loops *= size(axis, rows);
    for (int64_t loop = 0; loop < loops; ++loop) {
      int64_t index[max_dims + 1] = {}, rest = loop, row = 0;
      bool row_started = false;
      for (int axis = 2; axis <= c_.dims; ++axis) {
        index[axis] = rest % size(axis, rows);
        rest /= size(axis, rows);
        if (order_[axis] == row_axis) {
          row = index[axis];
        } else {
          row_started |= index[axis] > 0;
        }
      }
      for (index[1] = 0; index[1] < outer; index[1] += outer_step) {
        for (index[0] = 0; index[0] < inner; index[0] += inner_step) {
          Tile<T> tile = {};
          tile.outer = smaller(outer_step, outer - index[1]);
          tile.inner = smaller(inner_step, inner - index[0]);
          tile.outer_is_rows = outer_is_rows;
          tile.continues = row_started || index[0] > 0 || (index[1] > 0 && !outer_is_rows);
          if (copies_in_lines_ && index[0] == 0) add_lines(tile, first_row + index[1]);
          run_tile(tile, first_row, index, outer_is_rows ? index[1] : row, run);
        }
      }
    }
  }

  bool lanes_are_rows;

 private:
  static constexpr int64_t capacity = 512;
  static constexpr int row_axis = max_dims;

  void order_axes() {
    int inner = 0;
    for (int d = 1; d < c_.dims && c_.size[0] < 8; ++d) inner = c_.size[d] > c_.size[inner] ? d : inner;
    int count = 0;
    if (lanes_are_rows) order_[count++] = row_axis;
    order_[count++] = inner;
    for (int d = 0; d < c_.dims; ++d) {
      if (d != inner) order_[count++] = d;
    }
    if (!lanes_are_rows) order_[count++] = row_axis;
  }

  // Whether the gradients of scale and shift are a tensor's even and odd elements.
  void find_interleaved() {
    const Operand &scale = c_.operand[GRAD_SCALE], &shift = c_.operand[GRAD_SHIFT];
    if (scale.data == nullptr || shift.data == nullptr || scale.dtype != native<T> || stride(GRAD_SCALE, 0) != 2) return;
    const char* const first = scale.data < shift.data ? scale.data : shift.data;
    const char* const second = scale.data < shift.data ? shift.data : scale.data;
    interleaved_ = second == first + sizeof(T);
    for (int axis = 0; axis <= c_.dims; ++axis) interleaved_ &= stride(GRAD_SCALE, axis) == stride(GRAD_SHIFT, axis);
  }

  static bool is_line(const Copy& copy) {
    const Operand &from = copy.operand[0], &to = copy.operand[1];
    return copy.dims == 1 && from.stride[0] == 1 && to.stride[0] == 1 && copy.size[0] * bytes_of[to.dtype] >= 64;
  }

  void add_lines(Tile<T>& tile, int64_t row) const {
    for (; tile.lines < c_.copies; ++tile.lines) {
      const Copy& copy = c_.copy[tile.lines];
      const int64_t bytes = bytes_of[copy.operand[1].dtype];
      const int64_t from_pitch = copy.operand[0].row_stride * bytes, to_pitch = copy.operand[1].row_stride * bytes;
      tile.line[tile.lines] = {copy.operand[0].data + row * from_pitch, copy.operand[1].data + row * to_pitch,
                               copy.size[0] * bytes, from_pitch, to_pitch};
    }
  }

  int64_t size(int axis, int64_t rows) const { return order_[axis] == row_axis ? rows : c_.size[order_[axis]]; }

  int64_t stride(int role, int axis) const {
    const Operand& operand = c_.operand[role];
    return order_[axis] == row_axis ? operand.row_stride : operand.stride[order_[axis]];
  }

  template <class Run>
  void run_tile(Tile<T>& tile, int64_t first_row, const int64_t* index, int64_t row, Run run) {
    char* place[ROLES];
    for (int n = 0; n < present_count_; ++n) {
      const Role role = present_[n];
      const Operand& operand = c_.operand[role];
      int64_t offset = first_row * operand.row_stride;
      for (int axis = 0; axis <= c_.dims; ++axis) offset += index[axis] * stride(role, axis);
      place[role] = operand.data + offset * bytes_of[operand.dtype];
      T* const buffer = buffers_[role];
      tile.data[role] = direct_[role] ? reinterpret_cast<T*>(place[role]) : buffer;
      tile.pitch[role] = direct_[role] ? stride(role, 1) : tile.inner;
      if (direct_[role] || role >= Z) continue;
      const Box box = {tile.outer, tile.inner, stride(role, 1), stride(role, 0)};
      if (role == MASK) {
        pack(reinterpret_cast<uint8_t*>(buffer), reinterpret_cast<const uint8_t*>(place[role]), box);
      } else {
        pack(buffer, place[role], operand.dtype, box);
      }
    }
    tile.constant_gain = direct_[GAIN] && stride(GAIN, 0) == 0;
    run(tile, row);
    for (int n = 0; n < present_count_; ++n) {
      const Role role = present_[n];
      if (direct_[role] || role < Z) continue;
      const Box box = {tile.outer, tile.inner, stride(role, 1), stride(role, 0)};
      if (interleaved_ && role == GRAD_SCALE) {
        const Role first = place[GRAD_SCALE] < place[GRAD_SHIFT] ? GRAD_SCALE : GRAD_SHIFT;
        const Role second = first == GRAD_SCALE ? GRAD_SHIFT : GRAD_SCALE;
        unpack_both(reinterpret_cast<T*>(place[first]), buffers_[first], buffers_[second], box);
      } else if (interleaved_ && role == GRAD_SHIFT) {
        continue;
      } else if (role == GRAD_GAIN) {
        auto* sum = reinterpret_cast<double*>(place[role]);
        accumulate(sum, sum + c_.gains, buffers_[role], box);
      } else {
        unpack(place[role], buffers_[role], c_.operand[role].dtype, box);
      }
    }
  }

  const RowOp& c_;
  int order_[max_dims + 1];  // axes of the block from the innermost out: dims of a row, or row_axis
  Role present_[ROLES];
  int present_count_ = 0;
  bool direct_[ROLES] = {}, packing_ = false, interleaved_ = false, copies_in_lines_;
  alignas(64) T buffers_[ROLES][capacity];
};

}  // namespace fastflow::FASTFLOW_ISA

// What the kernels on rows share: the rows of a tile, the lanes of a vector, and the walk over blocks of rows.
#pragma once

#include "log_det.h"
#include "tiles.h"

namespace fastflow::FASTFLOW_ISA {

// The lanes of a vector that are transformed elements: all of them, or those inside the tile and not masked.
template <class T>
struct AllLanes {
  Vec<T> read(const T* from) const { return load(from); }
  void write(T* to, Vec<T> v) const { store(to, v); }
  Vec<T> active(Vec<T> v, Vec<T>) const { return v; }
};

template <class T>
struct SomeLanes {
  SomeLanes(const uint8_t* mask, int64_t left) : count(static_cast<int>(smaller(left, width<T>))) {
    transformed = mask == nullptr ? first_lanes<T>(count) : zero_bytes<T>(mask, count);
  }
  Vec<T> read(const T* from) const { return count == width<T> ? load(from) : load(from, count); }
  void write(T* to, Vec<T> v) const { count == width<T> ? store(to, v) : store(to, v, count); }
  Vec<T> active(Vec<T> v, Vec<T> otherwise) const { return transformed ? v : otherwise; }

  int count;
  Lanes<T> transformed;
};

// One outer row of a tile.
template <class T>
struct TileRow {
  const Tile<T>& tile;
  int64_t o;

  T* at(Role role) const { return tile.data[role] + o * tile.pitch[role]; }
  Vec<T> gain() const { return tile.constant_gain ? splat(*at(GAIN)) : Vec<T>{}; }
  void copy_lines() const {
    for (int n = 0; n < tile.lines; ++n) {
      const Line& line = tile.line[n];
      copy_line(line.to + o * line.to_pitch, line.from + o * line.from_pitch, line.bytes);
    }
  }

  // Calls step(i, lanes) for each vector.
  template <bool masked, class Step>
  FASTFLOW_INLINE void for_each_vector(Step step) const {
    int64_t i = 0;
    if constexpr (masked) {
      const auto* mask = reinterpret_cast<const uint8_t*>(tile.data[MASK]) + o * tile.pitch[MASK];
      for (; i < tile.inner; i += width<T>) step(i, SomeLanes<T>(mask + i, tile.inner - i));
    } else {
      for (; i + width<T> <= tile.inner; i += width<T>) step(i, AllLanes<T>{});
      if (i < tile.inner) step(i, SomeLanes<T>(nullptr, tile.inner - i));
    }
  }
};

// Rows that are worked on together: a register of them, as long as they stay in the cache.
template <class T>
int64_t block_rows(const RowOp& op) {
  return smaller(width<T>, 1 + 4096 / elements_of_row(op));
}

// Calls run(tile, totals of the tile's rows) for every tile, and adds finish(totals, lanes_are_rows), a row's log_det in
// each lane, to the running log_det.
template <class T, class Run, class Finish>
void forward_blocks(const RowOp& op, int64_t first_row, int64_t last_row, Run run, Finish finish) {
  const auto* running = static_cast<const T*>(op.log_det);
  auto* log_det = static_cast<T*>(op.log_det_out);
  Tiles<T> tiles(op);
  LogDet<T> totals[width<T>] = {};
  const int64_t step = block_rows<T>(op);
  for (int64_t row = first_row; row < last_row; row += step) {
    const int64_t rows = smaller(step, last_row - row);
    tiles.for_each(row, rows, [&](const Tile<T>& tile, int64_t r) { run(tile, totals + r); });
    const Vec<T> own = finish(totals, tiles.lanes_are_rows);
    for (int64_t r = 0; r < rows; ++r) {
      log_det[row + r] = own[r] + (running == nullptr ? 0 : running[(row + r) * op.log_det_stride]);
    }
  }
}

// Calls run(tile, grad_log_det of the tile's rows) for every tile: a vector for each row, or one with a row a lane.
template <class T, class Run>
void backward_blocks(const RowOp& op, int64_t first_row, int64_t last_row, Run run) {
  const auto* grad_log_det = static_cast<const T*>(op.log_det);
  Tiles<T> tiles(op);
  Vec<T> h[width<T>] = {};
  const int64_t step = block_rows<T>(op);
  for (int64_t row = first_row; row < last_row; row += step) {
    const int64_t rows = smaller(step, last_row - row);
    for (int64_t r = 0; r < rows && grad_log_det != nullptr; ++r) {
      const T value = grad_log_det[(row + r) * op.log_det_stride];
      if (tiles.lanes_are_rows) {
        h[0][r] = value;
      } else {
        h[r] = splat(value);
      }
    }
    tiles.for_each(row, rows, [&](const Tile<T>& tile, int64_t r) { run(tile, h + r); });
  }
}

}  // namespace fastflow::FASTFLOW_ISA

// A tile of results through the whole conditioner, and back: what one block does.
#pragma once

#include "residual_coupling/products.h"

namespace fastflow::residual_coupling {

// No number stays none.
FASTFLOW_HOST_DEVICE inline Pair rectify(Pair a) { return {a.first < 0 ? 0 : a.first, a.second < 0 ? 0 : a.second}; }
FASTFLOW_HOST_DEVICE inline Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
FASTFLOW_HOST_DEVICE inline Pair operator-(Pair a, Pair b) { return {a.first - b.first, a.second - b.second}; }
FASTFLOW_HOST_DEVICE inline Pair operator*(Pair a, Pair b) { return {a.first * b.first, a.second * b.second}; }
// a where the rectifier let `through` pass.
FASTFLOW_HOST_DEVICE inline Pair where(Pair through, Pair a) {
  return {through.first > 0 ? a.first : 0, through.second > 0 ? a.second : 0};
}

template <class Shape, class Block, bool keeps>
struct Tile : Products<Shape, Block> {
  using Base = Products<Shape, Block>;
  using Element = typename Shape::Element;
  using Sums = Fragment<Shape>;
  using Base::block;

  const Problem& p;
  const Schedule& s;
  Workspace<Element> workspace;
  float* pairs;   // shared: 16 rows of (s, t) of each warp
  int64_t* row;   // shared: each result's row and class
  int* klass;
  int64_t first;  // result of this tile, of those of the launch

  FASTFLOW_HOST_DEVICE Tile(const Block& block, const Problem& p, char* shared)
      : Base(block, shared, p.slices, p.slice_count), p(p), s(p.schedule),
        workspace(Workspace<Element>::of(p.schedule, Shape::rows, p.count, static_cast<Element*>(p.workspace))),
        pairs(reinterpret_cast<float*>(shared + Shape::input_bytes + Shape::ring_bytes)),
        row(reinterpret_cast<int64_t*>(pairs + Shape::pair_bytes / sizeof(float))),
        klass(reinterpret_cast<int*>(row + Shape::rows)), first(block.index() * Shape::rows) {
    for (int r = block.thread(); r < Shape::rows; r += threads) {
      const int64_t n = p.first + first + r, pair = here(r) ? (p.pairs ? p.pairs[n] : n) : 0;
      row[r] = pair / p.classes, klass[r] = int(pair % p.classes);
      if (keeps && here(r)) p.workspace_class[first + r] = klass[r];
    }
    block.barrier();
  }

  FASTFLOW_HOST_DEVICE bool here(int r) const { return first + r < p.count; }
  FASTFLOW_HOST_DEVICE int64_t result(int r) const { return p.first + first + r; }

  FASTFLOW_HOST_DEVICE Pair vector(int index, int column) const {
    return load_pair(p.vectors + s.vector(index) + column);
  }

  // Rows past the last result are written too, and read by nobody else. A thread reads back only what it wrote.
  FASTFLOW_HOST_DEVICE Element* kept(int64_t array, int r, int column) const {
    return workspace.data + array + first * Shape::width + (r * Shape::width + column);
  }
  FASTFLOW_HOST_DEVICE void keep(int64_t array, int r, int column, Pair value) const {
    if (keeps) store_pair(kept(array, r, column), value);
  }
  FASTFLOW_HOST_DEVICE Pair remember(int layer, int r, int column) const {
    return load_pair(kept(workspace.inputs(layer), r, column));
  }

  // Replaces the inputs of the next product by f(i, j, half, row, column), when all warps have left them.
  template <class F>
  FASTFLOW_HOST_DEVICE void put(F f) {
    block.barrier();
    each<Shape>(block, [&](int i, int j, int half, int r, int column) {
      store_pair(this->input(r, column), f(i, j, half, r, column));
    });
  }

  // The same from memory: inputs [first_input, and on] of each row.
  template <class F>
  FASTFLOW_HOST_DEVICE void put_rows(int first_input, int slices, F f) {
    block.barrier();
    const int pairs_of_row = slices * Shape::depth / 2;
    for (int at = block.thread(); at < Shape::rows * pairs_of_row; at += threads) {
      const int r = at / pairs_of_row, column = at % pairs_of_row * 2;
      store_pair(this->input(r, column), f(r, first_input + column));
    }
  }

  // A product with more inputs than the shared memory holds.
  template <class F>
  FASTFLOW_HOST_DEVICE void multiply_rows(Sums& sum, int slices, F f) {
    for (int slice = 0; slice < slices; slice += Shape::piece) {
      const int count = slices - slice < Shape::piece ? slices - slice : Shape::piece;
      put_rows(slice * Shape::depth, count, f);
      this->multiply(sum, count);
    }
  }

  FASTFLOW_HOST_DEVICE Pair passive(int r, int column) const {
    if (!here(r) || column >= s.passive) return {0, 0};
    const int64_t at = p.passive_shared ? row[r] : result(r);
    const Pair pair = {p.passive.at(at, column), column + 1 < s.passive ? p.passive.at(at, column + 1) : 0};
    return pair;
  }

  FASTFLOW_HOST_DEVICE Pair of_hidden(const View& view, int64_t at, int column) const {
    return {column < s.hidden ? view.at(at, column) : 0, column + 1 < s.hidden ? view.at(at, column + 1) : 0};
  }

  FASTFLOW_HOST_DEVICE void multiply_passive(Sums& sum) {
    multiply_rows(sum, s.passive_slices(), [&](int r, int column) {
      const Pair pair = passive(r, column);
      const int64_t at = workspace.passives() + (first + r) * workspace.passive + column;
      if (keeps && here(r)) store_pair(workspace.data + at, pair);
      return pair;
    });
  }

  // The first layer by itself: rows of it, no classes.
  FASTFLOW_HOST_DEVICE void first_layer(float* to) {
    Sums sum;
    multiply_passive(sum);
    each<Shape>(block, [&](int i, int j, int half, int r, int column) {
      const Pair pair = sum.pair(i, j, half);
      if (here(r) && column < s.hidden) to[result(r) * s.hidden + column] = pair.first;
      if (here(r) && column + 1 < s.hidden) to[result(r) * s.hidden + column + 1] = pair.second;
    });
  }

  // Leaves the last rectifier's output in the inputs and the residual stream, before norm, in h.
  FASTFLOW_HOST_DEVICE void conditioner(Sums& h) {
    const bool computed = !keeps && p.first_layer.data;
    if (!computed) multiply_passive(h);
    each<Shape>(block, [&](int i, int j, int half, int r, int column) {
      if (!here(r)) return;
      Pair sum = h.pair(i, j, half) + of_hidden(p.table, klass[r], column);
      if (computed) sum = sum + of_hidden(p.first_layer, p.passive_shared ? row[r] : result(r), column);
      h.set(i, j, half, sum);
    });
#pragma unroll 1
    for (int b = 0; b < s.blocks; ++b) {
      put([&](int i, int j, int half, int r, int column) {
        const Pair input = rectify(h.pair(i, j, half));
        keep(workspace.inputs(2 * b), r, column, input);
        return input;
      });
      {
        Sums middle;
        this->multiply(middle, s.hidden_slices());
        put([&](int i, int j, int half, int r, int column) {
          const Pair input = rectify(middle.pair(i, j, half) + vector(2 * b, column));
          keep(workspace.inputs(2 * b + 1), r, column, input);
          return input;
        });
      }
      this->multiply(h, s.hidden_slices());
      each<Shape>(block, [&](int i, int j, int half, int, int column) {
        h.set(i, j, half, h.pair(i, j, half) + vector(2 * b + 1, column));
      });
    }
    put([&](int i, int j, int half, int r, int column) {
      const Pair input = rectify(normed(h.pair(i, j, half), column));
      keep(workspace.inputs(2 * s.blocks), r, column, input);
      return input;
    });
  }

  FASTFLOW_HOST_DEVICE Pair normed(Pair h, int column) const {
    return (h - vector(2 * s.blocks, column)) * vector(2 * s.blocks + 1, column);
  }

  // The last layer. Calls use(row, column of active, (s, t)) -> Pair in rolled loops, neighbours in neighbouring lanes,
  // and adds up the first of the pair over the columns of the warp: lane l < 16 gets the sums of rows l of each 16.
  template <class Use>
  FASTFLOW_HOST_DEVICE void make(float (&sums)[Shape::m_tiles], Use use) {
#pragma unroll 1
    for (int pass = 0; pass < s.made_passes(); ++pass) {
      Sums made;
      this->multiply(made, s.hidden_slices());
      const Place<Shape> place(block.thread());
      const int lane = place.lane;
      float* const own = pairs + place.warp * 16 * Shape::pair_stride;
#pragma unroll
      for (int i = 0; i < Shape::m_tiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            const int at = (lane / 4 + 8 * half) * Shape::pair_stride + 8 * j + 2 * (lane % 4);
            store_pair(own + at, made.pair(i, j, half));
          }
        }
        block.warp_barrier();
#pragma unroll 1
        for (int r = 0; r < 16; ++r) {
          const int column = pass * Shape::width + place.column + 2 * lane;
          float* const at = own + r * Shape::pair_stride + 2 * lane;
          const Pair bias = load_pair(p.vectors + s.vector(2 * s.blocks + 2) + column);
          store_pair(at, use(place.row + 16 * i + r, column / 2, load_pair(at) + bias));
        }
        block.warp_barrier();
        if (lane < 16) {
          for (int column = 0; column < 64; column += 2) sums[i] += own[lane * Shape::pair_stride + column];
        }
        block.warp_barrier();
      }
    }
  }

  FASTFLOW_HOST_DEVICE void forward() {
    {
      Sums h;
      conditioner(h);
    }
    float log_det[Shape::m_tiles] = {};
    make(log_det, [&](int r, int column, Pair made) -> Pair {
      if (!here(r) || column >= s.active) return {0, 0};
      const Scale scale = scale_of(p.map, made.first);
      const float x = p.active.at(p.active_shared ? row[r] : result(r), column), t = made.second;
      p.z[result(r) * s.active + column] = p.map.shift_first ? (x + t) * scale.c : x * scale.c + t;
      return {scale.log_c, 0};
    });
    float* const parts = pairs;  // [rows, warp_columns]
    const Place<Shape> place(block.thread());
    block.barrier();
#pragma unroll
    for (int i = 0; i < Shape::m_tiles; ++i) {
      const int r = place.row + 16 * i + place.lane;
      if (place.lane < 16) parts[r * Shape::warp_columns + place.column / 64] = log_det[i];
    }
    block.barrier();
    for (int r = block.thread(); r < Shape::rows; r += threads) {
      if (!here(r)) continue;
      float sum = 0;
      for (int w = 0; w < Shape::warp_columns; ++w) sum += parts[r * Shape::warp_columns + w];
      p.log_det_out[result(r)] = p.log_det.data ? p.log_det.at(result(r), 0) + sum : sum;
    }
  }

  // Everything of the last layer's pass back that is not a product.
  FASTFLOW_HOST_DEVICE Pair invert(int r, int column, Pair made) const {
    const int64_t n = result(r);
    const Scale scale = scale_of(p.map, made.first);
    const float t = made.second, z = p.given_z.at(n, column), grad_z = p.grad_z.at(n, column);
    const float grad_active = grad_z * scale.c, unshifted = p.map.shift_first ? z : z - t;
    p.active_out[n * s.active + column] = p.map.shift_first ? z / scale.c - t : unshifted / scale.c;
    p.grad_active[n * s.active + column] = grad_active;
    return {(grad_z * unshifted + p.grad_log_det.at(n, 0)) * scale.slope, p.map.shift_first ? grad_active : grad_z};
  }

  FASTFLOW_HOST_DEVICE void backward() {
    Sums h;
    conditioner(h);
    float unused[Shape::m_tiles] = {};
    Element* const made_deltas = workspace.data + workspace.made_deltas();
    make(unused, [&](int r, int column, Pair made) -> Pair {
      const Pair delta = here(r) && column < s.active ? invert(r, column, made) : Pair{0, 0};
      const int64_t at = (first + r) * workspace.made + 2 * column;
      if (here(r) && 2 * column < workspace.made) store_pair(made_deltas + at, delta);
      return delta;
    });
    {
      Sums delta;
      multiply_rows(delta, s.made_slices(), [&](int r, int column) -> Pair {
        return here(r) ? load_pair(made_deltas + (first + r) * workspace.made + column) : Pair{0, 0};
      });
      each<Shape>(block, [&](int i, int j, int half, int r, int column) {
        const Pair stream = h.pair(i, j, half);
        const Pair through = where(normed(stream, column), delta.pair(i, j, half));
        keep(workspace.norms(), r, column, through * (stream - vector(2 * s.blocks, column)));
        h.set(i, j, half, through * vector(2 * s.blocks + 1, column));
      });
    }
    put_delta(2 * s.blocks, [&](int i, int j, int half, int, int) { return h.pair(i, j, half); });
    // h is the delta of the residual stream from here on.
#pragma unroll 1
    for (int b = s.blocks - 1; b >= 0; --b) {
      {
        Sums delta;
        this->multiply(delta, s.hidden_slices());
        put_delta(2 * b + 1, [&](int i, int j, int half, int r, int column) {
          return where(remember(2 * b + 1, r, column), delta.pair(i, j, half));
        });
      }
      Sums delta;
      this->multiply(delta, s.hidden_slices());
      put_delta(2 * b, [&](int i, int j, int half, int r, int column) {
        h.set(i, j, half, h.pair(i, j, half) + where(remember(2 * b, r, column), delta.pair(i, j, half)));
        return h.pair(i, j, half);
      });
    }
#pragma unroll 1
    for (int pass = 0; pass < s.passive_passes(); ++pass) {
      Sums grad;
      this->multiply(grad, s.hidden_slices());
      each<Shape>(block, [&](int i, int j, int half, int r, int column) {
        const Pair pair = grad.pair(i, j, half);
        column += pass * Shape::width;
        if (here(r) && column < s.passive) p.grad_passive[result(r) * s.passive + column] = pair.first;
        if (here(r) && column + 1 < s.passive) p.grad_passive[result(r) * s.passive + column + 1] = pair.second;
      });
    }
  }

  template <class F>
  FASTFLOW_HOST_DEVICE void put_delta(int layer, F f) {
    put([&](int i, int j, int half, int r, int column) {
      const Pair input = f(i, j, half, r, column);
      keep(workspace.deltas(layer), r, column, input);
      return input;
    });
  }
};

}  // namespace fastflow::residual_coupling

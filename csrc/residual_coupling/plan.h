// Which kernels a call runs, over what. `Launch` allocates scratch memory and runs them: on a GPU
// (cuda/residual_coupling.h), or block by block on a host (tests/native/residual_coupling.cpp).
#pragma once

#include <algorithm>
#include <vector>

#include "residual_coupling/gradients.h"
#include "residual_coupling/pack.h"
#include "residual_coupling/tile.h"

namespace fastflow::residual_coupling {

constexpr int64_t most_chunk_rows = 16384;
constexpr int64_t most_workspace_bytes = 256 << 20;

struct Matrix {
  const void* data;
  int64_t row, column;  // strides; a vector has rows only
};

// Calls f with the shape of the tiles for so many results. Short tiles read the weights more often and give a device of
// `processors` more blocks: they serve where all run at once. A result's bits do not depend on the shape.
template <class Element, class F>
void with_shape(int hidden, int64_t count, int64_t processors, F f) {
  constexpr int m_tiles = sizeof(Element) == 2 ? 3 : 2;
  using Short = Shape<Element, 1, 4>;
  if (hidden > 256) return f(Shape<Element, m_tiles, 8>());
  if (ceil_div(count, Short::rows) > processors) return f(Shape<Element, m_tiles, 4>());
  f(Short());
}

template <class Element, class Launch>
struct Plan {
  Launch& launch;
  Problem p;              // its count is that of all results
  const Matrix* weights;  // in the order of the op

  Schedule& s = p.schedule;
  int norm_shift = 4 * s.blocks + 1, last = norm_shift + 2;

  const Matrix& first_of(int block) const { return weights[1 + 4 * block]; }
  const Matrix& second_of(int block) const { return weights[3 + 4 * block]; }

  template <class Job, class F>
  static void in_batches(const std::vector<Job>& jobs, F f) {
    for (size_t first = 0; first < jobs.size(); first += most_jobs) {
      f(jobs.data() + first, int(std::min<size_t>(most_jobs, jobs.size() - first)));
    }
  }

  template <class Shape>
  void pack(bool backward) {
    s.width = Shape::width, s.depth = Shape::depth;
    p.slice_count = backward ? s.backward_slices() : s.forward_slices();
    const int64_t slice_bytes = int64_t(p.slice_count) * Shape::slice_bytes;
    char* const packed = static_cast<char*>(launch.bytes(slice_bytes + s.vectors() * int64_t(sizeof(float))));
    p.slices = packed, p.vectors = reinterpret_cast<const float*>(packed + slice_bytes);

    std::vector<PackJob> jobs;
    char* to = packed;
    const auto add = [&](const Matrix& m, int rows, int columns, int row_half, int column_half) {
      const int passes = int(ceil_div(rows, s.width)), slices = int(ceil_div(columns, s.depth));
      jobs.push_back({m.data, m.row, m.column, rows, columns, row_half, column_half, passes, slices, to});
      to += int64_t(passes) * slices * Shape::slice_bytes;
    };
    const auto transposed = [](const Matrix& m) { return Matrix{m.data, m.column, m.row}; };
    add(weights[0], s.hidden, s.passive, 0, 0);
    for (int b = 0; b < s.blocks; ++b) {
      add(first_of(b), s.hidden, s.hidden, 0, 0);
      add(second_of(b), s.hidden, s.hidden, 0, 0);
    }
    add(weights[last], 2 * s.active, s.hidden, s.active, 0);
    if (backward) {
      add(transposed(weights[last]), s.hidden, 2 * s.active, 0, s.active);
      for (int b = s.blocks - 1; b >= 0; --b) {
        add(transposed(second_of(b)), s.hidden, s.hidden, 0, 0);
        add(transposed(first_of(b)), s.hidden, s.hidden, 0, 0);
      }
      add(transposed(weights[0]), s.passive, s.hidden, 0, 0);
    }
    float* vector = const_cast<float*>(p.vectors);
    const auto add_vector = [&](const Matrix& m, int rows, int half) {
      const int passes = int(ceil_div(rows, s.width));
      jobs.push_back({m.data, m.row, 0, rows, 1, half, 0, passes, 0, vector});
      vector += s.vector(passes);
    };
    for (int i = 2; i < norm_shift; i += 2) add_vector(weights[i], s.hidden, 0);
    add_vector(weights[norm_shift], s.hidden, 0);
    add_vector(weights[norm_shift + 1], s.hidden, 0);
    add_vector(weights[last + 1], 2 * s.active, s.active);

    in_batches(jobs, [&](const PackJob* first, int count) {
      PackJobs batch = {{}, s.width};
      int64_t steps = 0;
      for (int i = 0; i < count; ++i) {
        const PackJob& job = batch.job[i] = first[i];
        steps = std::max(steps, job.slices ? int64_t(job.passes) * job.slices * s.width * 4 : s.vector(job.passes));
      }
      launch.template pack<Element>(batch, ceil_div(steps, threads), count);
    });
  }

  // `rows`: of passive.
  void forward(int64_t rows) {
    with_shape<Element>(s.hidden, p.count, launch.processors(), [&](auto shape) {
      using Shape = decltype(shape);
      pack<Shape>(false);
      if (p.passive_shared && rows < p.count) {
        Problem first = p;
        first.count = rows, first.classes = 1, first.pairs = nullptr, first.passive_shared = false;
        first.slice_count = s.passive_slices();
        float* const made = static_cast<float*>(launch.bytes(rows * s.hidden * int64_t(sizeof(float))));
        launch.template first_layer<Shape>(first, made, ceil_div(rows, Shape::rows));
        p.first_layer = {made, s.hidden, 1};
        p.slices += int64_t(first.slice_count) * Shape::slice_bytes, p.slice_count -= first.slice_count;
      }
      launch.template forward<Shape>(p, ceil_div(p.count, Shape::rows));
    });
  }

  int64_t chunk_rows(int64_t row_bytes) const {
    // Two chunks at least of float32, whose workspace is 9 % of what autograd keeps.
    const int64_t own = sizeof(Element) == 4 && p.count > split_rows ? ceil_div(p.count, 2) : p.count;
    const int64_t fits = std::max<int64_t>(most_workspace_bytes / row_bytes / split_rows, 1) * split_rows;
    return std::min(std::min(own, fits), most_chunk_rows);
  }

  // grad_table [K, H] and grads, contiguous.
  void backward(float* grad_table, float* const* grads) {
    with_shape<Element>(s.hidden, p.count, launch.processors(), [&](auto shape) {
      using Shape = decltype(shape);
      pack<Shape>(true);
      const auto one = Workspace<Element>::of(s, 1, 1, nullptr);
      const int64_t all = p.count, chunk = chunk_rows(one.elements() * int64_t(sizeof(Element)));
      const auto most = Workspace<Element>::of(s, Shape::rows, chunk, nullptr);
      p.workspace = launch.bytes(most.elements() * int64_t(sizeof(Element)));
      p.workspace_class = static_cast<int*>(launch.bytes(chunk * int64_t(sizeof(int))));
      std::vector<ReduceJob> reduced;
      int64_t total = 0;
      const auto size = [&](int i) -> int64_t {
        if (i == 0) return int64_t(s.hidden) * s.passive;
        if (i == last) return 2 * int64_t(s.active) * s.hidden;
        if (i == last + 1) return 2 * s.active;
        return i < norm_shift && i % 2 == 1 ? int64_t(s.hidden) * s.hidden : s.hidden;
      };
      for (int i = 0; i <= last + 1; ++i) {
        reduced.push_back({total, size(i), grads[i]});
        total += size(i);
      }
      float* const partial =
          static_cast<float*>(launch.bytes(ceil_div(chunk, split_rows) * total * int64_t(sizeof(float))));
      for (int64_t first = 0; first < all; first += chunk) {
        p.first = first, p.count = std::min(chunk, all - first);
        launch.template backward<Shape>(p, ceil_div(p.count, Shape::rows));
        const auto w = Workspace<Element>::of(s, Shape::rows, p.count, static_cast<Element*>(p.workspace));
        weight_sums(w, reduced, partial, total);
        launch.template class_sum<Element>(
            {w.data + w.deltas(0), p.workspace_class, p.count, w.hidden, s.hidden, grad_table, first > 0}, p.classes,
            int(ceil_div(s.hidden, 64)));
        in_batches(reduced, [&](const ReduceJob* jobs, int count) {
          int64_t blocks = 1;
          for (int i = 0; i < count; ++i) blocks = std::max(blocks, ceil_div(jobs[i].size, threads));
          launch.reduce(batch(jobs, count, w, partial, total, first > 0), blocks, count);
        });
      }
    });
  }

  template <class Job>
  Jobs<Job> batch(const Job* jobs, int count, const Workspace<Element>& w, float* partial, int64_t total, bool again) {
    Jobs<Job> batch = {{}, w.data, partial, p.count, total, int(ceil_div(p.count, split_rows)), again};
    std::copy(jobs, jobs + count, batch.job);
    return batch;
  }

  void weight_sums(const Workspace<Element>& w, const std::vector<ReduceJob>& to, float* partial, int64_t total) {
    const int layers = s.rectified(), h = s.hidden;
    std::vector<ProductJob> products = {
        {w.deltas(0), w.passives(), w.hidden, w.passive, h, s.passive, 0, to[0].from},
        {w.made_deltas(), w.inputs(layers - 1), w.made, w.hidden, 2 * s.active, h, s.active, to[last].from}};
    std::vector<SumJob> sums = {{w.deltas(layers - 1), w.hidden, h, 0, true, to[norm_shift].from},
                                {w.norms(), w.hidden, h, 0, false, to[norm_shift + 1].from},
                                {w.made_deltas(), w.made, 2 * s.active, s.active, false, to[last + 1].from}};
    for (int layer = 0; layer < layers - 1; ++layer) {
      const int64_t delta = w.deltas(layer + 1);
      products.push_back({delta, w.inputs(layer), w.hidden, w.hidden, h, h, 0, to[1 + 2 * layer].from});
      sums.push_back({delta, w.hidden, h, 0, false, to[2 + 2 * layer].from});
    }
    const int splits = int(ceil_div(p.count, split_rows));
    in_batches(products, [&](const ProductJob* jobs, int count) {
      int64_t tiles = 0;
      for (int i = 0; i < count; ++i) {
        tiles = std::max(tiles, ceil_div(jobs[i].rows, 128) * ceil_div(jobs[i].columns, 128));
      }
      launch.template outer<Element>(batch(jobs, count, w, partial, total, false), tiles, count, splits);
    });
    in_batches(sums, [&](const SumJob* jobs, int count) {
      int columns = 0;
      for (int i = 0; i < count; ++i) columns = std::max(columns, jobs[i].columns);
      launch.template column_sum<Element>(batch(jobs, count, w, partial, total, false), ceil_div(columns, sum_columns),
                                          count, splits);
    });
  }
};

}  // namespace fastflow::residual_coupling

// Gradients of the weights from the workspace of a chunk of results: products of deltas and inputs, column sums, sums
// by class. Sums over `split_rows` rows are kept apart and added in order, so that they are the same each time.
#pragma once

#include "residual_coupling/pack.h"
#include "residual_coupling/products.h"

namespace fastflow::residual_coupling {

constexpr int split_rows = 1024;

// to[n, k] = sum over rows of delta[row, n] input[row, k]
struct ProductJob {
  int64_t delta, input;  // in the workspace
  int delta_row, input_row;  // strides
  int rows, columns;     // of the result
  int row_half;          // as in PackJob
  int64_t to;            // in a split's partial sums
};

// to[n] = sum over rows of from[row, n], or less it
struct SumJob {
  int64_t from;
  int row, columns, column_half;
  bool negative;
  int64_t to;
};

struct ReduceJob {
  int64_t from, size;
  float* to;
};

template <class Job>
struct Jobs {
  Job job[most_jobs];
  const void* workspace;
  float* partial;  // [splits, total]
  int64_t rows, total;
  int splits;
  bool again;  // add to what earlier chunks left
};

// A block's tile of 128 x 128 of one product, over the rows of one split.
template <class Element, class Block>
struct OuterProduct {
  using Shape = residual_coupling::Shape<Element, 2, 2>;
  static constexpr int stages = 3, row_bytes = Shape::width * sizeof(Element), operand_bytes = 8192;
  static constexpr int stage_rows = operand_bytes / row_bytes, step_rows = stage_rows / 2;
  static constexpr int chunk_elements = 16 / sizeof(Element), row_chunks = row_bytes / 16;
  static constexpr int shared_bytes = stages * 2 * operand_bytes;

  Block block;
  const ProductJob& job;
  const Element *delta, *input;
  char* shared;
  int64_t end;
  int first_n, first_k;

  // Rows that a fragment takes at once are in different banks.
  FASTFLOW_HOST_DEVICE static int place(int row, int chunk) {
    return row * row_bytes + (chunk ^ (sizeof(Element) == 2 ? row & 7 : 2 * (row & 3))) * 16;
  }

  FASTFLOW_HOST_DEVICE void fetch(int stage, int64_t first) const {
    char* const to = shared + stage * 2 * operand_bytes;
    const int thread = block.thread();
#pragma unroll
    for (int step = 0; step < stage_rows * row_chunks; step += threads) {
      if (first >= end) break;
      const int at = step + thread;
      const int row = at / row_chunks, chunk = at % row_chunks;
      const int n = first_n + chunk * chunk_elements, k = first_k + chunk * chunk_elements;
      const bool n_there = first + row < end && n < job.delta_row, k_there = first + row < end && k < job.input_row;
      block.copy(to + place(row, chunk), n_there ? delta + (first + row) * job.delta_row + n : delta, n_there);
      block.copy(to + operand_bytes + place(row, chunk), k_there ? input + (first + row) * job.input_row + k : input,
                 k_there);
    }
    block.commit();
  }

  FASTFLOW_HOST_DEVICE uint32_t word(const char* from, int row, int column) const {
    return *reinterpret_cast<const uint32_t*>(from + place(row, column / 4) + column % 4 * 4);
  }

  // 16 columns from `column` of 2 x 8 rows from `row` as the left operand, and as two right ones.
  FASTFLOW_HOST_DEVICE void left(uint32_t (&to)[4], const char* from, int row, int column, int lane, Bf16) const {
    block.load_transposed(to, from + place(row + lane / 16 * 8 + lane % 8, (column + lane / 8 % 2 * 8) / 8));
  }
  FASTFLOW_HOST_DEVICE void right(uint32_t (&to)[4], const char* from, int row, int column, int lane, Bf16) const {
    block.load_transposed(to, from + place(row + lane / 8 % 2 * 8 + lane % 8, (column + lane / 16 * 8) / 8));
  }
  // The same of 2 x 4 rows.
  FASTFLOW_HOST_DEVICE void left(uint32_t (&to)[4], const char* from, int row, int column, int lane, float) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = word(from, row + i / 2 * 4 + lane % 4, column + i % 2 * 8 + lane / 4);
  }
  FASTFLOW_HOST_DEVICE void right(uint32_t (&to)[4], const char* from, int row, int column, int lane, float) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = word(from, row + i % 2 * 4 + lane % 4, column + i / 2 * 8 + lane / 4);
  }

  FASTFLOW_HOST_DEVICE void multiply(Fragment<Shape>& sum, const char* stage) const {
    const Place<Shape> at(block.thread());
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      Operand<Element, 4> a[Shape::m_tiles];
#pragma unroll
      for (int i = 0; i < Shape::m_tiles; ++i) {
        uint32_t bits[4];
        left(bits, stage, step * step_rows, at.row + 16 * i, at.lane, Element());
        a[i].take(bits);
      }
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t bits[4];
        right(bits, stage + operand_bytes, step * step_rows, at.column + 8 * j, at.lane, Element());
        Operand<Element, 2> first, second;
        first.take(bits), second.take(bits + 2);
#pragma unroll
        for (int i = 0; i < Shape::m_tiles; ++i) {
          multiply_add(block, sum.value[i][j], a[i], first);
          multiply_add(block, sum.value[i][j + 1], a[i], second);
        }
      }
    }
  }

  FASTFLOW_HOST_DEVICE void run(float* to) {
    const int64_t first = int64_t(block.index_z()) * split_rows;
    const int count = int(ceil_div(end - first, stage_rows));
    for (int i = 0; i < stages - 1; ++i) fetch(i, first + int64_t(i) * stage_rows);
    Fragment<Shape> sum;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      block.template wait<stages - 2>();
      block.barrier();
      const int next = i + stages - 1;
      fetch(next % stages, first + int64_t(next) * stage_rows);
      multiply(sum, shared + i % stages * 2 * operand_bytes);
    }
    each<Shape>(block, [&](int i, int j, int half, int row, int column) {
      const int n = first_n + row, k = first_k + column;
      const Pair pair = sum.pair(i, j, half);
      if (n >= job.rows) return;
      float* const at = to + job.to + int64_t(unwoven(n, job.row_half)) * job.columns + k;
      if (k < job.columns) at[0] = pair.first;
      if (k + 1 < job.columns) at[1] = pair.second;
    });
  }
};

template <class Element, class Block>
FASTFLOW_HOST_DEVICE void outer_product(const Block& block, const Jobs<ProductJob>& jobs, char* shared) {
  const ProductJob& job = jobs.job[block.index_y()];
  const int across = int(ceil_div(job.columns, 128)), down = int(block.index() / across);
  if (down * 128 >= job.rows) return;
  const int64_t past = (block.index_z() + 1) * int64_t(split_rows);
  const Element* const workspace = static_cast<const Element*>(jobs.workspace);
  OuterProduct<Element, Block> product = {block, job, workspace + job.delta, workspace + job.input, shared,
                                          past < jobs.rows ? past : jobs.rows, down * 128,
                                          int(block.index() % across) * 128};
  product.run(jobs.partial + block.index_z() * jobs.total);
}

constexpr int sum_columns = 64;  // of a block

template <class Element, class Block>
FASTFLOW_HOST_DEVICE void column_sum(const Block& block, const Jobs<SumJob>& jobs, float* shared) {
  const SumJob& job = jobs.job[block.index_y()];
  const int thread = block.thread(), column = int(block.index()) * sum_columns + thread % sum_columns;
  const int64_t first = int64_t(block.index_z()) * split_rows;
  const int64_t end = first + split_rows < jobs.rows ? first + split_rows : jobs.rows;
  const Element* const from = static_cast<const Element*>(jobs.workspace) + job.from + column;
  constexpr int step = threads / sum_columns, run = 16 * step;  // a sum of short sums rounds less
  float sum = 0;
  for (int64_t row = first + thread / sum_columns; column < job.columns && row < end; row += run) {
    float part = 0;
#pragma unroll
    for (int64_t i = 0; i < run; i += step) part += row + i < end ? load_one(from + (row + i) * job.row) : 0;
    sum += part;
  }
  shared[thread] = sum;
  block.barrier();
  if (thread >= sum_columns || column >= job.columns) return;
  for (int i = 1; i < step; ++i) sum += shared[i * sum_columns + thread];
  jobs.partial[block.index_z() * jobs.total + job.to + unwoven(column, job.column_half)] = job.negative ? -sum : sum;
}

struct TableProblem {
  const void* deltas;  // [rows, width]
  const int* klass;    // [rows]
  int64_t rows;
  int width, hidden;
  float* to;  // [classes, hidden]
  bool again;
};

// Block (class, 64 columns): each warp adds up the deltas of the class among its eighth of the rows.
template <class Element, class Block>
FASTFLOW_HOST_DEVICE void class_sum(const Block& block, const TableProblem& p, float* shared) {
  constexpr int warps = threads / 32;
  const int thread = block.thread(), lane = thread % 32, warp = thread / 32;
  const int64_t klass = block.index(), part = round_up(ceil_div(p.rows, warps), 32);
  const int64_t first = warp * part, end = first + part < p.rows ? first + part : p.rows;
  const int column = int(block.index_y()) * 64 + 2 * lane;
  Pair sum = {0, 0};
  for (int64_t row = first; row < end; row += 32) {
    const bool own = row + lane < end && p.klass[row + lane] == klass;
    for (uint32_t left = block.ballot(own); left; left &= left - 1) {
      int bit = 0;
#ifdef __CUDA_ARCH__
      bit = __ffs(int(left)) - 1;
#else
      while (!(left >> bit & 1)) ++bit;
#endif
      const Pair delta = load_pair(static_cast<const Element*>(p.deltas) + (row + bit) * p.width + column);
      sum.first += delta.first, sum.second += delta.second;
    }
  }
  store_pair(shared + warp * 64 + 2 * lane, sum);
  block.barrier();
  const int own = int(block.index_y()) * 64 + thread;
  if (thread >= 64 || own >= p.hidden) return;
  float* const to = p.to + klass * p.hidden + own;
  float total = p.again ? *to : 0;
  for (int i = 0; i < warps; ++i) total += shared[i * 64 + thread];
  *to = total;
}

template <class Block>
FASTFLOW_HOST_DEVICE void reduce_splits(const Block& block, const Jobs<ReduceJob>& jobs) {
  const ReduceJob& job = jobs.job[block.index_y()];
  const int64_t i = block.index() * threads + block.thread();
  if (i >= job.size) return;
  float sum = jobs.again ? job.to[i] : 0;
  for (int split = 0; split < jobs.splits; ++split) sum += jobs.partial[split * jobs.total + job.from + i];
  job.to[i] = sum;
}

}  // namespace fastflow::residual_coupling

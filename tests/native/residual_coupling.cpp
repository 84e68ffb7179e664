// Every kernel of residual_coupling on a host, tensor cores and all, by the plan that the GPU follows.
#include "residual_coupling/plan.h"

#include "warps.h"

using namespace fastflow::residual_coupling;
using fastflow::testing::HostBlock;
using fastflow::testing::Machine;

namespace {

struct HostLaunch {
  int64_t processor_count;
  Machine machine{threads};
  std::vector<std::unique_ptr<char[]>> scratch;
  alignas(16) char shared[168 << 10];

  int64_t processors() const { return processor_count; }

  void* bytes(int64_t count) {
    scratch.emplace_back(new char[count + 16]);
    std::fill_n(scratch.back().get(), count + 16, char(0xff));  // no number
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.back().get()) + 15) / 16 * 16);
  }

  template <class F>
  void grid(int64_t x, int y, int z, F f) {
    for (int k = 0; k < z; ++k) {
      for (int j = 0; j < y; ++j) {
        for (int64_t i = 0; i < x; ++i) {
          std::fill_n(shared, sizeof shared, char(0xff));
          machine.run(i, j, k, [&] { f(HostBlock{&machine}); });
        }
      }
    }
  }

  template <class Element>
  void pack(const PackJobs& jobs, int64_t blocks, int count) {
    for (int j = 0; j < count; ++j) {
      for (int64_t i = 0; i < blocks * threads; ++i) {
        fastflow::residual_coupling::pack<Element>(jobs.job[j], jobs.width, i);
      }
    }
  }
  template <class Shape>
  void first_layer(const Problem& p, float* to, int64_t blocks) {
    grid(blocks, 1, 1,
         [&](const HostBlock& block) { Tile<Shape, HostBlock, false>(block, p, shared).first_layer(to); });
  }
  template <class Shape>
  void forward(const Problem& p, int64_t blocks) {
    static_assert(Shape::shared_bytes <= int(sizeof shared), "");
    grid(blocks, 1, 1, [&](const HostBlock& block) { Tile<Shape, HostBlock, false>(block, p, shared).forward(); });
  }
  template <class Shape>
  void backward(const Problem& p, int64_t blocks) {
    grid(blocks, 1, 1, [&](const HostBlock& block) { Tile<Shape, HostBlock, true>(block, p, shared).backward(); });
  }
  template <class Element>
  void outer(const Jobs<ProductJob>& jobs, int64_t tiles, int count, int splits) {
    grid(tiles, count, splits, [&](const HostBlock& block) { outer_product<Element>(block, jobs, shared); });
  }
  template <class Element>
  void column_sum(const Jobs<SumJob>& jobs, int64_t blocks, int count, int splits) {
    grid(blocks, count, splits, [&](const HostBlock& block) {
      fastflow::residual_coupling::column_sum<Element>(block, jobs, reinterpret_cast<float*>(shared));
    });
  }
  template <class Element>
  void class_sum(const TableProblem& p, int64_t classes, int columns) {
    grid(classes, columns, 1, [&](const HostBlock& block) {
      fastflow::residual_coupling::class_sum<Element>(block, p, reinterpret_cast<float*>(shared));
    });
  }
  void reduce(const Jobs<ReduceJob>& jobs, int64_t blocks, int count) {
    grid(blocks, count, 1, [&](const HostBlock& block) { reduce_splits(block, jobs); });
  }
};

}  // namespace

extern "C" void forward(const Problem* p, const Matrix* weights, bool bf16, int64_t processors, int64_t rows) {
  const auto launch = std::make_unique<HostLaunch>(HostLaunch{processors});
  if (bf16) {
    Plan<Bf16, HostLaunch>{*launch, *p, weights}.forward(rows);
  } else {
    Plan<float, HostLaunch>{*launch, *p, weights}.forward(rows);
  }
}

extern "C" void backward(const Problem* p, const Matrix* weights, bool bf16, int64_t processors, float* grad_table,
                         float* const* grads) {
  const auto launch = std::make_unique<HostLaunch>(HostLaunch{processors});
  if (bf16) {
    Plan<Bf16, HostLaunch>{*launch, *p, weights}.backward(grad_table, grads);
  } else {
    Plan<float, HostLaunch>{*launch, *p, weights}.backward(grad_table, grads);
  }
}

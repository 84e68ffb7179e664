// Runs the kernels that are structs (csrc/gaussian_class_scores.h) on the host, for tests: the threads of a block are
// coroutines of one thread, which pass control on at a barrier, in ascending or in descending order. A kernel that
// lacks a barrier gives different results in the two.
#pragma once

#include "host_device.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace fastflow {

class HostBlocks {
 public:
  class ThreadBlock {
   public:
    ThreadBlock(HostBlocks* blocks, int thread) : blocks_(blocks), thread_(thread) {}
    int thread() const { return thread_; }
    int64_t x() const { return blocks_->place_.x; }
    int64_t y() const { return blocks_->place_.y; }
    int64_t z() const { return blocks_->place_.z; }
    void barrier() const { swapcontext(&blocks_->threads_[thread_].context, &blocks_->scheduler_); }

   private:
    HostBlocks* blocks_;
    int thread_;
  };

  explicit HostBlocks(bool descending) : descending_(descending) {}

  template <class Kernel>
  void run(const Grid& grid, const Kernel& kernel) {
    const auto memory = std::make_unique<typename Kernel::Shared>();
    if (threads_.size() < Kernel::threads) threads_.resize(Kernel::threads);
    body_ = [](HostBlocks* blocks, int thread) {
      (*static_cast<const Kernel*>(blocks->kernel_))(*static_cast<typename Kernel::Shared*>(blocks->shared_),
                                                     ThreadBlock(blocks, thread));
    };
    kernel_ = &kernel;
    shared_ = memory.get();
    for (place_.z = 0; place_.z < grid.z; ++place_.z) {
      for (place_.y = 0; place_.y < grid.y; ++place_.y) {
        for (place_.x = 0; place_.x < grid.x; ++place_.x) {
          memset(shared_, 0xff, sizeof(typename Kernel::Shared));  // no numbers
          run_block(Kernel::threads);
        }
      }
    }
  }

 private:
  struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done;
  };
  static constexpr size_t stack_bytes = 256 * 1024;

  static void enter(unsigned high, unsigned low, int thread) {
    auto* const blocks = reinterpret_cast<HostBlocks*>(uintptr_t(high) << 32 | low);
    blocks->body_(blocks, thread);
    blocks->threads_[thread].done = true;
  }

  void run_block(int count) {
    const auto self = reinterpret_cast<uintptr_t>(this);
    for (int i = 0; i < count; ++i) {
      Thread& thread = threads_[i];
      if (thread.stack == nullptr) thread.stack.reset(new char[stack_bytes]);
      thread.done = false;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = stack_bytes;
      thread.context.uc_link = &scheduler_;
      makecontext(&thread.context, reinterpret_cast<void (*)()>(enter), 3, unsigned(self >> 32), unsigned(self), i);
    }
    for (int done = 0; done == 0;) {
      for (int n = 0; n < count; ++n) {
        Thread& thread = threads_[descending_ ? count - 1 - n : n];
        swapcontext(&scheduler_, &thread.context);
        done += thread.done;
      }
      if (done != 0 && done != count) {
        fprintf(stderr, "%d of %d threads left while the others wait at a barrier\n", done, count);
        abort();
      }
    }
  }

  bool descending_;
  Grid place_ = {0, 0, 0};
  std::vector<Thread> threads_;
  ucontext_t scheduler_;
  void (*body_)(HostBlocks*, int);
  const void* kernel_;
  void* shared_;
};

// What csrc/cuda/thread_block.h has for a GPU: memory is filled with no numbers first.
class HostDevice {
 public:
  HostDevice(int multiprocessors, bool descending) : multiprocessors_(multiprocessors), blocks_(descending) {}

  template <class T>
  T* allocate(int64_t count) {
    kept_.emplace_back(new char[sizeof(T) * count]);
    memset(kept_.back().get(), 0xff, sizeof(T) * count);
    return reinterpret_cast<T*>(kept_.back().get());
  }

  template <class Kernel>
  void launch(const Grid& grid, const Kernel& kernel) {
    blocks_.run(grid, kernel);
  }

  int multiprocessors() const { return multiprocessors_; }

 private:
  int multiprocessors_;
  HostBlocks blocks_;
  std::vector<std::unique_ptr<char[]>> kept_;
};

}  // namespace fastflow

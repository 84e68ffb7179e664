#pragma once

#include <cstdint>
#include <memory>

namespace fastflow {

// Uninitialised memory that starts with a cache line. Aligned here: what malloc aligned does not fit into the place where
// the same was before, and each call would write to new pages.
class Memory {
 public:
  static constexpr int64_t line = 64;

  // What was there before is lost.
  char* allocate(int64_t bytes) {
    memory_.reset(new char[bytes + line]);
    return memory_.get() + line - reinterpret_cast<uintptr_t>(memory_.get()) % line;
  }

 private:
  std::unique_ptr<char[]> memory_;
};

}  // namespace fastflow

#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace fastflow {

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

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

// Uninitialised memory for as long as this lives, in one block: malloc would give several large ones back to the system
// after each call, and their pages would be cleared anew in the next.
class Scratch {
 public:
  void ask(char*& place, int64_t bytes) {
    asked_.push_back({&place, bytes_});
    bytes_ += round_up(bytes, Memory::line);
  }
  void allocate() {
    char* const first = memory_.allocate(bytes_);
    for (const auto& [place, offset] : asked_) *place = first + offset;
  }

 private:
  std::vector<std::pair<char**, int64_t>> asked_;
  int64_t bytes_ = 0;
  Memory memory_;
};

}  // namespace fastflow

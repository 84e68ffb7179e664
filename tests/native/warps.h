// A block of CUDA threads on a host: one fiber a thread, run in turns, 32 of them in step wherever the instruction is
// of a warp. What arrives late on a GPU arrives late here: asynchronous copies land when they are waited for.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

namespace fastflow::testing {

struct Copy {
  void* to;
  const void* from;
  bool present;
};

struct Fiber {
  ucontext_t context;
  std::vector<std::vector<Copy>> groups{1};
  int64_t waits = 0;  // barriers of the block, or of the warp, that it has come to
  int64_t warp_waits = 0;
  bool done = false;
};

// What the lanes of a warp hand each other.
struct Warp {
  int arrived = 0;
  int64_t passed = 0;
  const void* row[32];
  uint32_t a[32][4], b[32][2], loaded[32][4];
  float sum[32][4];
  uint32_t votes;
};

struct Machine {
  static constexpr size_t stack_bytes = 256 << 10;
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<char> stacks;
  int current = 0, arrived = 0;
  int64_t passed = 0;
  int64_t index[3];
  std::function<void()> body;

  explicit Machine(int threads) : fibers(threads), warps(threads / 32), stacks(threads * stack_bytes) {}

  void yield() { swapcontext(&fibers[current].context, &scheduler); }

  static void enter(unsigned low, unsigned high) {
    Machine* machine = reinterpret_cast<Machine*>(uint64_t(high) << 32 | low);
    machine->body();
    machine->fibers[machine->current].done = true;
    machine->yield();
  }

  // Every thread until it waits, warp by warp, until all are through.
  void run(int64_t x, int64_t y, int64_t z, std::function<void()> f) {
    body = f, index[0] = x, index[1] = y, index[2] = z, arrived = 0, passed = 0;
    const uint64_t self = reinterpret_cast<uint64_t>(this);
    for (size_t i = 0; i < fibers.size(); ++i) {
      Fiber& fiber = fibers[i];
      fiber.waits = fiber.warp_waits = 0, fiber.done = false, fiber.groups.assign(1, {});
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks.data() + i * stack_bytes;
      fiber.context.uc_stack.ss_size = stack_bytes;
      fiber.context.uc_link = &scheduler;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Machine::enter), 2, unsigned(self),
                  unsigned(self >> 32));
    }
    for (Warp& warp : warps) warp.arrived = 0, warp.passed = 0;
    bool forward = false;
    for (bool moved = true; moved;) {
      moved = false, forward = !forward;  // no order of the warps may be relied on
      for (size_t turn = 0; turn < warps.size(); ++turn) {
        const size_t w = forward ? turn : warps.size() - 1 - turn;
        for (bool step = true; step;) {
          step = false;
          for (size_t i = 32 * w; i < 32 * w + 32; ++i) {
            const Fiber& fiber = fibers[i];
            if (fiber.done || fiber.waits > passed || fiber.warp_waits > warps[w].passed) continue;
            current = int(i), step = moved = true;
            swapcontext(&scheduler, &fibers[i].context);
          }
        }
      }
    }
    for (const Fiber& fiber : fibers) {
      if (!fiber.done) std::fprintf(stderr, "a thread waits for ever\n"), std::abort();
      for (const auto& group : fiber.groups) {
        if (!group.empty()) std::fprintf(stderr, "a copy that nobody waited for\n"), std::abort();
      }
    }
  }
};

inline float tf32(uint32_t bits) {
  bits &= 0xffffe000u;  // the instruction does not read the rest
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float bf16(uint32_t bits) {
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The sums of a tensor core are rounded toward zero.
inline float cut(double sum) {
  const float nearest = float(sum);
  return std::fabs(double(nearest)) > std::fabs(sum) ? std::nextafterf(nearest, 0) : nearest;
}

struct HostBlock {
  Machine* machine;

  int64_t index() const { return machine->index[0]; }
  int index_y() const { return int(machine->index[1]); }
  int index_z() const { return int(machine->index[2]); }
  int thread() const { return machine->current; }
  Fiber& fiber() const { return machine->fibers[machine->current]; }
  Warp& warp() const { return machine->warps[machine->current / 32]; }
  int lane() const { return machine->current % 32; }
  void fence() const {}

  void barrier() const {
    if (++machine->arrived == int(machine->fibers.size())) {
      machine->arrived = 0;
      ++machine->passed;
    }
    if (++fiber().waits > machine->passed) machine->yield();
  }

  // The last lane to come does the work of all.
  template <class Work>
  void together(Work work) const {
    Warp& own = warp();
    if (++own.arrived == 32) {
      work(own);
      own.arrived = 0;
      ++own.passed;
    }
    if (++fiber().warp_waits > own.passed) machine->yield();
  }
  void warp_barrier() const {
    together([](Warp&) {});
  }

  uint32_t ballot(bool vote) const {
    warp().a[lane()][0] = vote;
    together([](Warp& own) {
      own.votes = 0;
      for (int l = 0; l < 32; ++l) own.votes |= own.a[l][0] << l;
    });
    return warp().votes;
  }

  void copy(void* shared, const void* global, bool present) const {
    if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
      std::fprintf(stderr, "a copy that is not aligned\n"), std::abort();
    }
    std::memset(shared, 0xff, 16);
    fiber().groups.back().push_back({shared, global, present});
  }
  void commit() const { fiber().groups.emplace_back(); }
  template <int later>
  void wait() const {
    auto& groups = fiber().groups;  // the last is open
    for (size_t i = 0; i + later + 1 < groups.size(); ++i) {
      for (const Copy& copy : groups[i]) {
        if (copy.present) std::memcpy(copy.to, copy.from, 16); else std::memset(copy.to, 0, 16);
      }
      groups[i].clear();
    }
  }

  void load_matrices(uint32_t (&to)[4], const void* row, bool transposed) const {
    warp().row[lane()] = row;
    together([transposed](Warp& own) {
      for (int m = 0; m < 4; ++m) {
        uint16_t entry[8][8];
        for (int r = 0; r < 8; ++r) std::memcpy(entry[r], own.row[8 * m + r], 16);
        for (int l = 0; l < 32; ++l) {
          const int g = l / 4, q = 2 * (l % 4);
          own.loaded[l][m] = transposed ? entry[q][g] | uint32_t(entry[q + 1][g]) << 16
                                        : entry[g][q] | uint32_t(entry[g][q + 1]) << 16;
        }
      }
    });
    std::memcpy(to, warp().loaded[lane()], 16);
  }
  void load(uint32_t (&to)[4], const void* row) const { load_matrices(to, row, false); }
  void load_transposed(uint32_t (&to)[4], const void* row) const { load_matrices(to, row, true); }

  // The fragments of PTX: A [16, depth], B [depth, 8], the sum [16, 8].
  template <int depth, class A, class B>
  static void sum_all(Warp& own, A a, B b) {
    float left[16][16], right[16][8];
    for (int l = 0; l < 32; ++l) {
      const int g = l / 4, q = l % 4;
      for (int i = 0; i < 4; ++i) a(left, own.a[l][i], g + i % 2 * 8, i / 2, q);
      for (int i = 0; i < 2; ++i) b(right, own.b[l][i], i, q, g);
    }
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + i / 2 * 8, column = 2 * (l % 4) + i % 2;
        double sum = own.sum[l][i];
        for (int k = 0; k < depth; ++k) sum += double(left[row][k]) * right[k][column];
        own.sum[l][i] = cut(sum);
      }
    }
  }

  template <class Work>
  void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Work work) const {
    Warp& own = warp();
    std::memcpy(own.sum[lane()], sum, 16);
    std::memcpy(own.a[lane()], a, 16);
    std::memcpy(own.b[lane()], b, 8);
    together(work);
    std::memcpy(sum, own.sum[lane()], 16);
  }

  void multiply_bf16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
    multiply(sum, a, b, [](Warp& own) {
      sum_all<16>(
          own,
          [](float (&left)[16][16], uint32_t bits, int row, int half, int q) {
            left[row][8 * half + 2 * q] = bf16(bits & 0xffff), left[row][8 * half + 2 * q + 1] = bf16(bits >> 16);
          },
          [](float (&right)[16][8], uint32_t bits, int half, int q, int column) {
            right[8 * half + 2 * q][column] = bf16(bits & 0xffff);
            right[8 * half + 2 * q + 1][column] = bf16(bits >> 16);
          });
    });
  }

  void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
    multiply(sum, a, b, [](Warp& own) {
      sum_all<8>(
          own,
          [](float (&left)[16][16], uint32_t bits, int row, int half, int q) { left[row][4 * half + q] = tf32(bits); },
          [](float (&right)[16][8], uint32_t bits, int half, int q, int column) {
            right[4 * half + q][column] = tf32(bits);
          });
    });
  }
};

}  // namespace fastflow::testing

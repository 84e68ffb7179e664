#include "instruction_set.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>

namespace fastflow {
namespace {

constexpr const char* names[] = {"baseline", "avx2", "avx512"};

InstructionSet best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  if (avx2) return avx512 ? InstructionSet::avx512 : InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

InstructionSet choose() {
  const InstructionSet supported = best();
  const char* asked = std::getenv("FASTFLOW_CPU_ISA");
  if (asked == nullptr) return supported;
  for (int level = 0; level <= static_cast<int>(supported); ++level) {
    if (std::strcmp(asked, names[level]) == 0) return static_cast<InstructionSet>(level);
  }
  STD_TORCH_CHECK(false, "FASTFLOW_CPU_ISA is ", asked, ", expected baseline, avx2 or avx512, and at most ",
                  names[static_cast<int>(supported)], " on this CPU");
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

bool multiplies_bfloat16() {
#if defined(__x86_64__)
  return instruction_set() == InstructionSet::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace fastflow

// Read by `fastflow doctor` through ctypes; "" when FASTFLOW_CPU_ISA asks for what is not there.
extern "C" __attribute__((visibility("default"))) const char* fastflow_instruction_set() {
  try {
    return fastflow::names[static_cast<int>(fastflow::instruction_set())];
  } catch (...) {
    return "";
  }
}

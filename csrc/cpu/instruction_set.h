#pragma once

namespace fastflow {

// The x86-64 levels that csrc/cpu/isa is compiled for: 1, 3 (AVX2, FMA) and 4 (AVX-512).
enum class InstructionSet { baseline, avx2, avx512 };

// The best level of this CPU, or the lower one that FASTFLOW_CPU_ISA names; read once.
// Throws if FASTFLOW_CPU_ISA is unknown or above what the CPU has.
InstructionSet instruction_set();

// Whether there are instructions for dot products of bfloat16 beside that level, which is AVX-512 then.
bool multiplies_bfloat16();

}  // namespace fastflow

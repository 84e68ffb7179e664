// uniform_noise for one instruction set.
#include "cpu/uniform_noise.h"

#include "convert.h"
#include "philox.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

template <class T>
void draw(const UniformNoise& op, int64_t first_row, int64_t last_row) {
  const int64_t elements = elements_of_row(op);
  for (int64_t row = first_row; row < last_row; ++row) {
    T* const to = static_cast<T*>(op.noise) + row * elements;
    const uint64_t index = op.key.rows[row * op.key.stride];
    for (int64_t i = 0; i < elements; i += noise_run) {
      alignas(64) float run[noise_run];
      uniform_run(run, op.key, index, i / 4);
      const int64_t left = elements - i;
      widen(to + i, run, left < noise_run ? left : noise_run);
    }
  }
}

}  // namespace

void uniform_noise(const UniformNoise& op, int64_t first_row, int64_t last_row) {
  op.in_double ? draw<double>(op, first_row, last_row) : draw<float>(op, first_row, last_row);
}

}  // namespace fastflow::FASTFLOW_ISA

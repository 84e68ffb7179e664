// permute for one instruction set; see csrc/cpu/permute.cpp for what it costs.
#include "cpu/permute.h"

#include "simd.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

template <class T>
void permute_rows(const Permute& op, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const T* const from = reinterpret_cast<const T*>(op.from) + row * op.from_pitch;
    T* const to = reinterpret_cast<T*>(op.to) + row * op.columns;
    for (int64_t i = 0; i < op.columns; ++i) to[i] = from[op.order[i]];
  }
}

#if defined(__AVX512F__)
constexpr int64_t most_columns = 256;  // whose vectors are cheaper to search than elements are to load

// Two vectors at a time: an instruction picks 16 of their 32 elements.
void permute_short_rows(const Permute& op, int64_t first, int64_t last) {
  const int64_t columns = op.columns, pairs = (columns + 31) / 32;
  for (int64_t row = first; row < last; ++row) {
    const float* const from = reinterpret_cast<const float*>(op.from) + row * op.from_pitch;
    float* const to = reinterpret_cast<float*>(op.to) + row * columns;
    __m512 own[most_columns / 16];
    for (int64_t n = 0; n < 2 * pairs; ++n) own[n] = load_part(from + 16 * n, columns - 16 * n);
    for (int64_t i = 0; i < columns; i += 16) {
      const __m512i order = _mm512_loadu_si512(op.order + i), pair = _mm512_srli_epi32(order, 5);
      __m512 found = _mm512_permutex2var_ps(own[0], order, own[1]);
      for (int p = 1; p < pairs; ++p) {
        const __mmask16 here = _mm512_cmpeq_epi32_mask(pair, _mm512_set1_epi32(p));
        found = _mm512_mask_mov_ps(found, here, _mm512_permutex2var_ps(own[2 * p], order, own[2 * p + 1]));
      }
      store_part<float>(to + i, found, columns - i);
    }
  }
}
#endif

}  // namespace

void permute(const Permute& op, int64_t first, int64_t last) {
#if defined(__AVX512F__)
  if (!op.in_double && op.columns <= most_columns) return permute_short_rows(op, first, last);
#endif
  if (op.in_double) return permute_rows<double>(op, first, last);
  permute_rows<float>(op, first, last);
}

}  // namespace fastflow::FASTFLOW_ISA

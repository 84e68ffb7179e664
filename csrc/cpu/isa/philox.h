// The noise of consecutive elements of a row: Philox-4x32-10 as in fastflow/ops/uniform_noise.py, a counter a lane.
#pragma once

#include <utility>

#include "cpu/noise_key.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

using Words = UnsignedLanes<double>;  // 64-bit lanes with a 32-bit word each in the lower half; the upper is arbitrary

constexpr int noise_run = 4 * width<double>;

FASTFLOW_INLINE Words words(uint64_t value) { return value - Words{}; }

// The 64-bit product of the words.
FASTFLOW_INLINE Words multiply(Words a, Words b) {
#if defined(__AVX512F__)
  return (Words)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// a[i], b[i], a[i + 1], b[i + 1], ... from the first lane or from the middle on.
template <int first, int... lane>
FASTFLOW_INLINE Words interleave(Words a, Words b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (first + lane / 2 + lane % 2 * width<double>)...);
#else
  return __builtin_shuffle(a, b, Words{(first + lane / 2 + lane % 2 * width<double>)...});
#endif
}

FASTFLOW_INLINE Vec<float> uniform(Words two) {
  return __builtin_convertvector((Lanes<float>)((UnsignedLanes<float>)two >> 8), Vec<float>) * 0x1p-24f;
}

// Elements 4 block, ..., 4 block + noise_run - 1 of a row.
FASTFLOW_INLINE void uniform_run(float* to, const NoiseKey& key, uint64_t row, uint64_t block) {
  Words a = words(block), b = words(row), c = words(row >> 32), d = words(key.step);
  for (int lane = 0; lane < width<double>; ++lane) a[lane] += lane;
  uint32_t k = static_cast<uint32_t>(key.seed), m = static_cast<uint32_t>(key.seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Words first = multiply(a, words(0xd2511f53u)), second = multiply(c, words(0xcd9e8d57u));
    a = (second >> 32) ^ b ^ words(k);
    b = second;
    c = (first >> 32) ^ d ^ words(m);
    d = first;
    k += 0x9e3779b9u;
    m += 0xbb67ae85u;
  }
  constexpr std::make_integer_sequence<int, width<double>> lanes;
  const Words ab = (a & 0xffffffffu) | (b << 32), cd = (c & 0xffffffffu) | (d << 32);
  store(to, uniform(interleave<0>(ab, cd, lanes)));
  store(to + noise_run / 2, uniform(interleave<width<double> / 2>(ab, cd, lanes)));
}

}  // namespace fastflow::FASTFLOW_ISA

// Matrix products of a tile of rows with packed weights, in float, double or bfloat16 with sums in float.
//
// A packed matrix is panels of two vectors of outputs, in each the outputs' weights of one input side by side; of two
// inputs where a multiplication takes a pair.
#pragma once

#include "cpu/linear.h"

#include "convert.h"
#include "multiply.h"

namespace fastflow::FASTFLOW_ISA {

// Sums of 14 rows and two vectors take 28 of 32 registers, those of 6 rows 12 of 16.
constexpr int tall = register_bytes == 64 ? 14 : 6;
template <class T>
constexpr int panel = 2 * width<T>;

template <class Number>
struct InNumbers {
  using T = Number;
  using Input = Number;
  using Weight = Number;
  static constexpr int fold = 1;  // inputs that one multiplication takes

  static Input pack(Weight weight) { return weight; }
  static FASTFLOW_INLINE Vec<T> read(const Input* from) { return load(from); }
  static FASTFLOW_INLINE void write(Input* to, Vec<T> v) { store(to, v); }
};

// To bfloat16, to nearest, ties to even, and back.
FASTFLOW_INLINE Vec<float> rounded(Vec<float> v) {
  using Bits = UnsignedLanes<float>;
  const Bits bits = (Bits)v, nearest = bits + (0x7fffu + (bits >> 16 & 1u)), quiet = bits | 0x400000u;
  return (Vec<float>)((v == v ? nearest : quiet) & 0xffff0000u);
}

struct OfBfloat16InFloat : InNumbers<float> {
  using Weight = BFloat16;

  static float pack(BFloat16 weight) { return widen(weight); }
  static FASTFLOW_INLINE void write(float* to, Vec<float> v) { store(to, rounded(v)); }
};

// sums[m][v] = sum over k < depth of a(m, k) b(k, v), where a(m, k) is a[m * a_pitch + k], or a[k * a_pitch + m] when
// `by_rows`. With pairs of inputs k counts those.
template <class P, int rows, bool by_rows>
struct Block {
  using T = typename P::T;

  static __attribute__((noinline)) void run(const T* a, int64_t a_pitch, const T* b, int64_t b_pitch, int64_t depth,
                                            Vec<T> (*sums)[2]) {
    Vec<T> sum[rows][2] = {};
    multiply<rows, 2, T>(
        sum, depth, [&](int m, int64_t k) { return by_rows ? a[k * a_pitch + m] : a[m * a_pitch + k]; },
        [&](int64_t k, int v) { return load(b + k * b_pitch + v * width<T>); });
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m) {
      for (int v = 0; v < 2; ++v) sums[m][v] = sum[m][v];
    }
  }
};

#if defined(__AVX512F__)
struct InBfloat16 {
  using T = float;
  using Input = uint16_t;
  using Weight = BFloat16;
  static constexpr int fold = 2;

  static uint16_t pack(BFloat16 weight) { return weight.bits; }
  static FASTFLOW_INLINE Vec<float> read(const uint16_t* from) {
    return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
  }
  static FASTFLOW_INLINE void write(uint16_t* to, Vec<float> v) {
    const __m512i bits = _mm512_srli_epi32((__m512i)rounded(v), 16);
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16(bits));
  }
};

// Only where the CPU has AVX512_BF16, which level 4 of x86-64 does not promise.
template <int rows, bool by_rows>
struct Block<InBfloat16, rows, by_rows> {
  __attribute__((noinline, target("avx512bf16"))) static void run(const uint16_t* a, int64_t a_pitch, const uint16_t* b,
                                                                  int64_t b_pitch, int64_t depth,
                                                                  Vec<float> (*sums)[2]) {
    __m512 sum[rows][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
      const __m512bh right[2] = {(__m512bh)_mm512_loadu_si512(b + k * b_pitch),
                                 (__m512bh)_mm512_loadu_si512(b + k * b_pitch + 32)};
#pragma GCC unroll 14
      for (int m = 0; m < rows; ++m) {
        int32_t pair;
        memcpy(&pair, by_rows ? a + k * a_pitch + 2 * m : a + m * a_pitch + 2 * k, sizeof pair);
        const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
        sum[m][0] = _mm512_dpbf16_ps(sum[m][0], left, right[0]);
        sum[m][1] = _mm512_dpbf16_ps(sum[m][1], left, right[1]);
      }
    }
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m) {
      for (int v = 0; v < 2; ++v) sums[m][v] = sum[m][v];
    }
  }
};
#endif

// The number of rows, at most `left`, whose sums it leaves.
template <class P, bool by_rows>
int multiply_block(int64_t left, const typename P::Input* a, int64_t a_pitch, const typename P::Input* b,
                   int64_t b_pitch, int64_t depth, Vec<typename P::T> (*sums)[2]) {
  const auto run = [&](auto rows) {
    Block<P, decltype(rows)::value, by_rows>::run(a, a_pitch, b, b_pitch, depth, sums);
    return decltype(rows)::value;
  };
  if (left >= tall) return run(Constant<tall>{});
  if (tall > 8 && left >= 8) return run(Constant<(tall > 8 ? 8 : 1)>{});
  if (left >= 4) return run(Constant<4>{});
  return left >= 2 ? run(Constant<2>{}) : run(Constant<1>{});
}

// Calls run(first, rows) for parts of the rows, at most a tile each and about as large as each other. All but the
// last have an even number of rows.
template <class Run>
void in_tiles(int64_t first, int64_t last, Run run) {
  const int64_t tiles = (last - first + tile_rows - 1) / tile_rows;
  const int64_t even = tiles > 1 ? (last - first + tiles - 1) / tiles : tile_rows;
  const int64_t rows = smaller(tile_rows, (even + tall - 1) / tall * tall);
  for (; first < last; first += rows) run(first, smaller(rows, last - first));
}

// The inputs that a product goes through: the features, and zeros where several runs are side by side or make up pairs.
template <class P>
int64_t depth(const Features& features) {
  return features.parts > 1 ? places(features) : (features.size + P::fold - 1) / P::fold * P::fold;
}

// Rows of inputs times a packed matrix: finish(row, column, sums) for each vector of the outputs.
template <class P, class Finish>
void multiply_rows(int64_t rows, const typename P::Input* x, int64_t pitch, const void* packed, int64_t depth,
                   int64_t columns, Finish finish) {
  using T = typename P::T;
  Vec<T> sums[tall][2];
  const auto* b = static_cast<const typename P::Input*>(packed);
  for (int64_t column = 0; column < columns; column += panel<T>, b += depth * panel<T>) {
    for (int64_t row = 0; row < rows;) {
      const int done = multiply_block<P, false>(rows - row, x + row * pitch, pitch, b, panel<T> * P::fold,
                                                depth / P::fold, sums);
      for (int m = 0; m < done; ++m, ++row) {
        for (int v = 0; v < 2; ++v) finish(row, column + v * width<T>, sums[m][v]);
      }
    }
  }
}

}  // namespace fastflow::FASTFLOW_ISA

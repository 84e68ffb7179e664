// The inner loops of small matrix products, whose sums stay in registers.
#pragma once

#include <type_traits>

#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

// Sums of 12 rows and two vectors take 24 of 32 registers, those of 6 rows 12 of 16.
constexpr int most_rows = register_bytes == 64 ? 12 : 6;

template <int value>
using Constant = std::integral_constant<int, value>;

// Calls body(Constant<rows>, first) for parts of [0, count) of at most `most` rows.
template <int most, class Body>
FASTFLOW_INLINE void in_parts(int count, Body body, int first = 0) {
  for (; count - first >= most; first += most) body(Constant<most>{}, first);
  if constexpr (most > 1) in_parts<(most > 8 ? 8 : most > 4 ? 4 : most / 2)>(count, body, first);
}

// sum[m][v] += a(m, k) b(k, v) over k < depth.
template <int rows, int vectors, class T, class A, class B>
FASTFLOW_INLINE void multiply(Vec<T> (&sum)[rows][vectors], int64_t depth, A a, B b) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> right[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) right[v] = b(k, v);
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m) {
      const Vec<T> left = splat<T>(a(m, k));
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[m][v] += left * right[v];
    }
  }
}

// Lane r < count of the result is the sum over the lanes of rows[r], whose values are lost. Each round halves the rows:
// a lane takes the bit of its place that tells which of two rows it sums from now on.
template <class T, int bit, int... lane>
FASTFLOW_INLINE Vec<T> join(Vec<T> a, Vec<T> b, std::integer_sequence<int, lane...>) {
  constexpr int w = width<T>;
  const Vec<T> own = choose<T, ((lane & bit) ? w + lane : lane)...>(a, b);
  return own + choose<T, ((lane & bit) ? w + (lane ^ bit) : (lane ^ bit))...>(a, b);
}
template <class T, int count = width<T>, int bit = 1>
FASTFLOW_INLINE Vec<T> lane_sums(Vec<T>* rows) {
  static_assert(count * bit <= width<T> || count == 1);
  if constexpr (bit == width<T>) {
    return rows[0];
  } else {
    constexpr std::make_integer_sequence<int, width<T>> lanes;
#pragma GCC unroll 8
    for (int i = 0; i < (count + 1) / 2; ++i) {
      rows[i] = join<T, bit>(rows[2 * i], rows[2 * i + 1 < count ? 2 * i + 1 : 2 * i], lanes);
    }
    return lane_sums<T, (count + 1) / 2, 2 * bit>(rows);
  }
}

// Lane r * width / parts + g is the sum over the lanes of the g-th run of `parts` lanes of rows[r < count].
template <class T, int count, int parts>
FASTFLOW_INLINE Vec<T> run_sums(Vec<T>* rows) {
  static_assert(count <= parts);
  if constexpr (parts == 1) {
    return rows[0];
  } else {
    constexpr std::make_integer_sequence<int, width<T>> lanes;
#pragma GCC unroll 8
    for (int i = 0; i < (count + 1) / 2; ++i) {
      const Pairs<T> joined = pairs<T>(rows[2 * i], rows[2 * i + 1 < count ? 2 * i + 1 : 2 * i], lanes);
      rows[i] = joined.even + joined.odd;
    }
    return run_sums<T, (count + 1) / 2, parts / 2>(rows);
  }
}

// A square block of as many vectors as they have lanes. Each round moves the lowest bit of a number's place to the top.
template <class T>
FASTFLOW_INLINE void transpose(Vec<T> (&rows)[width<T>]) {
  constexpr std::make_integer_sequence<int, width<T>> lanes;
#pragma GCC unroll 4
  for (int round = 1; round < width<T>; round *= 2) {
    Vec<T> even_first[width<T>];
#pragma GCC unroll 8
    for (int i = 0; i < width<T> / 2; ++i) {
      const Pairs<T> joined = pairs<T>(rows[2 * i], rows[2 * i + 1], lanes);
      even_first[i] = joined.even;
      even_first[i + width<T> / 2] = joined.odd;
    }
#pragma GCC unroll 16
    for (int i = 0; i < width<T>; ++i) rows[i] = even_first[i];
  }
}

}  // namespace fastflow::FASTFLOW_ISA

// Vectors of one register, float or double, for the kernels.
//
// Included only by csrc/cpu/isa/*.cpp, which are compiled once per instruction set into namespace FASTFLOW_ISA. Nothing
// with C++ linkage that another source also compiles may be included here: the linker would keep one copy for all
// instruction sets. Arithmetic and `mask ? a : b` are GCC's vector extensions; a * b + c contracts to a fused
// multiply-add where there is one.
#pragma once

#if defined(__x86_64__)
#pragma GCC diagnostic push  // GCC 12 warns about its own header (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

// The compiler would rather call exp from a loop that uses it twice, and the loop would lose its registers.
#define FASTFLOW_INLINE inline __attribute__((always_inline))

namespace fastflow::FASTFLOW_ISA {

#if defined(__AVX512F__)
constexpr int register_bytes = 64;
#elif defined(__AVX2__)
constexpr int register_bytes = 32;
#else
constexpr int register_bytes = 16;
#endif

template <class T>
struct Register;
template <>
struct Register<float> {
  typedef float vector __attribute__((vector_size(register_bytes)));
  typedef int32_t lanes __attribute__((vector_size(register_bytes)));
  typedef uint32_t unsigned_lanes __attribute__((vector_size(register_bytes)));
  typedef uint8_t bytes __attribute__((vector_size(register_bytes / sizeof(float))));
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
};
template <>
struct Register<double> {
  typedef double vector __attribute__((vector_size(register_bytes)));
  typedef int64_t lanes __attribute__((vector_size(register_bytes)));
  typedef uint64_t unsigned_lanes __attribute__((vector_size(register_bytes)));
  typedef uint8_t bytes __attribute__((vector_size(register_bytes / sizeof(double))));
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
};

template <class T>
using Vec = typename Register<T>::vector;
template <class T>
using Lanes = typename Register<T>::lanes;  // -1 where true, as a comparison of two Vec gives
template <class T>
using UnsignedLanes = typename Register<T>::unsigned_lanes;
template <class T>
constexpr int width = register_bytes / sizeof(T);

FASTFLOW_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
FASTFLOW_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}

template <class T>
FASTFLOW_INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
FASTFLOW_INLINE void store(T* to, Vec<T> v) {
  memcpy(to, &v, sizeof v);
}

// Past the caches, to an address aligned to a register. finish_streams() makes what a thread so wrote visible to others.
template <class T>
FASTFLOW_INLINE void stream(T* to, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)to, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)to, (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128((__m128i*)to, (__m128i)v);
#else
  store(to, v);
#endif
}

FASTFLOW_INLINE void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class T>
FASTFLOW_INLINE Lanes<T> first_lanes(int count) {
  Lanes<T> index;
  for (int lane = 0; lane < width<T>; ++lane) index[lane] = lane;
  return index < count;
}

// The first `count` < width lanes; the others read as 0 and are not written.
#if defined(__AVX512F__)
FASTFLOW_INLINE Vec<float> load(const float* from, int count) { return _mm512_maskz_loadu_ps((1u << count) - 1, from); }
FASTFLOW_INLINE Vec<double> load(const double* from, int count) { return _mm512_maskz_loadu_pd((1u << count) - 1, from); }
FASTFLOW_INLINE void store(float* to, Vec<float> v, int count) { _mm512_mask_storeu_ps(to, (1u << count) - 1, v); }
FASTFLOW_INLINE void store(double* to, Vec<double> v, int count) { _mm512_mask_storeu_pd(to, (1u << count) - 1, v); }
#elif defined(__AVX2__)
FASTFLOW_INLINE Vec<float> load(const float* from, int count) {
  return _mm256_maskload_ps(from, (__m256i)first_lanes<float>(count));
}
FASTFLOW_INLINE Vec<double> load(const double* from, int count) {
  return _mm256_maskload_pd(from, (__m256i)first_lanes<double>(count));
}
FASTFLOW_INLINE void store(float* to, Vec<float> v, int count) {
  _mm256_maskstore_ps(to, (__m256i)first_lanes<float>(count), v);
}
FASTFLOW_INLINE void store(double* to, Vec<double> v, int count) {
  _mm256_maskstore_pd(to, (__m256i)first_lanes<double>(count), v);
}
#else
template <class T>
FASTFLOW_INLINE Vec<T> load(const T* from, int count) {
  Vec<T> v = {};
  for (int lane = 0; lane < count; ++lane) v[lane] = from[lane];
  return v;
}
template <class T>
FASTFLOW_INLINE void store(T* to, Vec<T> v, int count) {
  for (int lane = 0; lane < count; ++lane) to[lane] = v[lane];
}
#endif

// Of `count` numbers, which may be more than a vector has, fewer, or none.
template <class T>
FASTFLOW_INLINE Vec<T> load_part(const T* from, int64_t count) {
  if (count >= width<T>) return load(from);
  return count > 0 ? load(from, static_cast<int>(count)) : Vec<T>{};
}
template <class T>
FASTFLOW_INLINE void store_part(T* to, Vec<T> v, int64_t count) {
  if (count >= width<T>) {
    store(to, v);
  } else if (count > 0) {
    store(to, v, static_cast<int>(count));
  }
}

// As condition ? a : b, where the condition may come from outside of a loop: GCC 12 fails on that for doubles in SSE2.
template <class T>
FASTFLOW_INLINE Vec<T> select(Lanes<T> condition, Vec<T> a, Vec<T> b) {
  return (Vec<T>)((condition & (Lanes<T>)a) | (~condition & (Lanes<T>)b));
}

// The larger and the smaller of the two; a NaN in x comes through.
#if defined(__AVX512F__)
FASTFLOW_INLINE Vec<float> at_least(float bound, Vec<float> x) { return _mm512_max_ps(splat(bound), x); }
FASTFLOW_INLINE Vec<double> at_least(double bound, Vec<double> x) { return _mm512_max_pd(splat(bound), x); }
FASTFLOW_INLINE Vec<float> at_most(float bound, Vec<float> x) { return _mm512_min_ps(splat(bound), x); }
FASTFLOW_INLINE Vec<double> at_most(double bound, Vec<double> x) { return _mm512_min_pd(splat(bound), x); }
#elif defined(__AVX2__)
FASTFLOW_INLINE Vec<float> at_least(float bound, Vec<float> x) { return _mm256_max_ps(splat(bound), x); }
FASTFLOW_INLINE Vec<double> at_least(double bound, Vec<double> x) { return _mm256_max_pd(splat(bound), x); }
FASTFLOW_INLINE Vec<float> at_most(float bound, Vec<float> x) { return _mm256_min_ps(splat(bound), x); }
FASTFLOW_INLINE Vec<double> at_most(double bound, Vec<double> x) { return _mm256_min_pd(splat(bound), x); }
#else
template <class T>
FASTFLOW_INLINE Vec<T> at_least(T bound, Vec<T> x) {
  return x < bound ? splat(bound) : x;
}
template <class T>
FASTFLOW_INLINE Vec<T> at_most(T bound, Vec<T> x) {
  return x > bound ? splat(bound) : x;
}
#endif

// Lanes whose byte is 0, of `count` bytes; false beyond them.
template <class T>
FASTFLOW_INLINE Lanes<T> zero_bytes(const uint8_t* from, int count) {
  typename Register<T>::bytes bytes;
  memset(&bytes, 1, sizeof bytes);
  if (count == width<T>) {
    memcpy(&bytes, from, sizeof bytes);
  } else {
    for (int lane = 0; lane < count; ++lane) bytes[lane] = from[lane];
  }
  return __builtin_convertvector(bytes, Lanes<T>) == 0;
}

template <class T>
FASTFLOW_INLINE Vec<T> absolute(Vec<T> x) {
  return (Vec<T>)((Lanes<T>)x & ~(Lanes<T>)splat<T>(-0.0f));
}

template <class T>
FASTFLOW_INLINE Vec<T> minus_absolute(Vec<T> x) {
  return (Vec<T>)((Lanes<T>)x | (Lanes<T>)splat<T>(-0.0f));
}

template <class T>
FASTFLOW_INLINE Vec<T> copy_sign(Vec<T> size, Vec<T> x) {
  return (Vec<T>)((Lanes<T>)size | ((Lanes<T>)x & (Lanes<T>)splat<T>(-0.0f)));
}

// Zeros come in. A shift that keeps the sign, and a conversion to or from 64-bit integers, need AVX-512.
template <class T>
FASTFLOW_INLINE Lanes<T> shift_right(Lanes<T> x, int count) {
  return (Lanes<T>)((UnsignedLanes<T>)x >> count);
}

// x = mantissa 2^exponent with 1 <= mantissa < 2, for normal x > 0. Infinity and NaN are their own mantissa or exponent,
// the exponent of 0 is -infinity.
template <class T>
struct Split {
  Vec<T> mantissa, exponent;
};

template <class T>
FASTFLOW_INLINE Split<T> split(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) {
    return {_mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src), _mm512_getexp_ps(x)};
  } else {
    return {_mm512_getmant_pd(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src), _mm512_getexp_pd(x)};
  }
#else
  constexpr int mantissa_bits = Register<T>::mantissa_bits;
  constexpr T whole = T(int64_t{1} << mantissa_bits);  // its mantissa takes an integer as it is
  const Lanes<T> bits = (Lanes<T>)x, one = (Lanes<T>)splat<T>(1);
  const Lanes<T> finite = x < splat<T>(INFINITY);
  const Vec<T> mantissa = (Vec<T>)((bits & ~(Lanes<T>)splat<T>(INFINITY)) | one);
  const Vec<T> biased = (Vec<T>)(shift_right<T>(bits, mantissa_bits) | (Lanes<T>)splat<T>(whole));
  const Vec<T> exponent = biased - (whole + Register<T>::exponent_bias);
  return {mantissa, finite ? (x == 0 ? splat<T>(-INFINITY) : exponent) : x};  // as AVX-512 has it
#endif
}

// The lanes of [a, b] with these numbers.
template <class T, int... number>
FASTFLOW_INLINE Vec<T> choose(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, number...);
#else  // GCC has the other only from 12 on
  return __builtin_shuffle(a, b, Lanes<T>{number...});
#endif
}

template <class T>
struct Pairs {
  Vec<T> even, odd;
};

// The even and the odd lanes of [a, b].
template <class T, int... lane>
FASTFLOW_INLINE Pairs<T> pairs(Vec<T> a, Vec<T> b, std::integer_sequence<int, lane...>) {
  return {choose<T, (2 * lane)...>(a, b), choose<T, (2 * lane + 1)...>(a, b)};
}

template <class T>
struct Spread {
  Vec<T> low, high;
};

template <class T, int... lane>
FASTFLOW_INLINE Spread<T> spread(Vec<T> v, Vec<T> low, Vec<T> high, std::integer_sequence<int, lane...>) {
  constexpr int lanes = width<T>;
  return {choose<T, (lane % 2 ? lane : lanes + lane / 2)...>(low, v),
          choose<T, (lane % 2 ? lane : lanes + lanes / 2 + lane / 2)...>(high, v)};
}

template <class T, int... lane>
FASTFLOW_INLINE Spread<T> zip(Vec<T> a, Vec<T> b, std::integer_sequence<int, lane...>) {
  constexpr int lanes = width<T>;
  return {choose<T, (lane / 2 + lane % 2 * lanes)...>(a, b),
          choose<T, (lanes / 2 + lane / 2 + lane % 2 * lanes)...>(a, b)};
}

// a0 b0 a1 b1 ...
FASTFLOW_INLINE Spread<float> zip(Vec<float> a, Vec<float> b) {
  return zip<float>(a, b, std::make_integer_sequence<int, width<float>>{});
}
FASTFLOW_INLINE Spread<double> zip(Vec<double> a, Vec<double> b) {
  return zip<double>(a, b, std::make_integer_sequence<int, width<double>>{});
}

// [low, high] with the lanes of v in the even ones' places; a float's or a double's vectors.
FASTFLOW_INLINE Spread<float> spread_among(Vec<float> v, Vec<float> low, Vec<float> high) {
  return spread<float>(v, low, high, std::make_integer_sequence<int, width<float>>{});
}
FASTFLOW_INLINE Spread<double> spread_among(Vec<double> v, Vec<double> low, Vec<double> high) {
  return spread<double>(v, low, high, std::make_integer_sequence<int, width<double>>{});
}
FASTFLOW_INLINE Vec<float> even_of(Vec<float> a, Vec<float> b) {
  return pairs<float>(a, b, std::make_integer_sequence<int, width<float>>{}).even;
}
FASTFLOW_INLINE Vec<double> even_of(Vec<double> a, Vec<double> b) {
  return pairs<double>(a, b, std::make_integer_sequence<int, width<double>>{}).even;
}

}  // namespace fastflow::FASTFLOW_ISA

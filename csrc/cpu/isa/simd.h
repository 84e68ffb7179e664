// One-register vectors and the elementary functions of the CPU kernels.
//
// Included only by csrc/cpu/isa/*.cpp, which are compiled once per instruction set into namespace FASTFLOW_ISA. Nothing
// with C++ linkage that another source also compiles may be included here: the linker would keep one copy for all
// instruction sets. Arithmetic and `mask ? a : b` are GCC's vector extensions; a*b + c contracts to a fused multiply-add
// where there is one.
//
// Float functions are minimax polynomials within 2 ulp (exp 1.0, log 1.0, tanh 1.9, atan 1.5, log1p_ratio 1.0); they
// pass NaN through, and give what libm gives at infinities, on overflow and in the subnormal range. Double calls libm.
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
  typedef uint8_t bytes __attribute__((vector_size(register_bytes / sizeof(float))));
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
};
template <>
struct Register<double> {
  typedef double vector __attribute__((vector_size(register_bytes)));
  typedef int64_t lanes __attribute__((vector_size(register_bytes)));
  typedef uint8_t bytes __attribute__((vector_size(register_bytes / sizeof(double))));
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
};

template <class T>
using Vec = typename Register<T>::vector;
template <class T>
using Lanes = typename Register<T>::lanes;  // -1 where true, as a comparison of two Vec gives
template <class T>
constexpr int width = register_bytes / sizeof(T);

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

// The larger and the smaller of the two; a NaN in x comes through.
#if defined(__AVX512F__)
FASTFLOW_INLINE Vec<float> at_least(float bound, Vec<float> x) { return _mm512_max_ps(splat(bound), x); }
FASTFLOW_INLINE Vec<float> at_most(float bound, Vec<float> x) { return _mm512_min_ps(splat(bound), x); }
#elif defined(__AVX2__)
FASTFLOW_INLINE Vec<float> at_least(float bound, Vec<float> x) { return _mm256_max_ps(splat(bound), x); }
FASTFLOW_INLINE Vec<float> at_most(float bound, Vec<float> x) { return _mm256_min_ps(splat(bound), x); }
#else
FASTFLOW_INLINE Vec<float> at_least(float bound, Vec<float> x) { return x < bound ? splat(bound) : x; }
FASTFLOW_INLINE Vec<float> at_most(float bound, Vec<float> x) { return x > bound ? splat(bound) : x; }
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

// x = mantissa 2^exponent with 1 <= mantissa < 2, for normal x > 0. Infinity and NaN are their own mantissa or exponent.
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
  constexpr int mantissa_bits = Register<T>::mantissa_bits, bias = Register<T>::exponent_bias;
  const Lanes<T> bits = (Lanes<T>)x, one = (Lanes<T>)splat<T>(1);
  const Lanes<T> finite = x < splat<T>(INFINITY);
  const Vec<T> mantissa = (Vec<T>)((bits & ~(Lanes<T>)splat<T>(INFINITY)) | one);
  const Vec<T> exponent = __builtin_convertvector((bits >> mantissa_bits) - bias, Vec<T>);
  return {finite ? mantissa : x, finite ? exponent : Vec<T>{}};
#endif
}

// p 2^n for integral n in [-150, 128].
FASTFLOW_INLINE Vec<float> scale_by_power(Vec<float> p, Vec<float> n) {
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else  // in two steps, so that the subnormal range is reached
  const Lanes<float> whole = __builtin_convertvector(n, Lanes<float>), half = whole >> 1;
  return p * (Vec<float>)((half + 127) << 23) * (Vec<float>)((whole - half + 127) << 23);
#endif
}

constexpr float round_bits = 12582912.0f;  // 1.5 2^23: adding it leaves no bits for a fraction

// For x <= 89, beyond which exp rounds to infinity.
FASTFLOW_INLINE Vec<float> exp_below_limit(Vec<float> x) {
  x = at_least(-104.0f, x);  // exp(-104) rounds to 0
  const Vec<float> n = (x * 1.44269504f + round_bits) - round_bits;
  Vec<float> r = x - n * 0.693359375f;  // ln 2 in two parts, the first exact in 9 bits
  r = r + n * 2.12194440e-4f;
  Vec<float> p = r * 0.0013748304f + 0.008369301f;
  p = p * r + 0.041669626f;
  p = p * r + 0.16666515f;
  p = p * r + 0.49999988f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return scale_by_power(p, n);
}

FASTFLOW_INLINE Vec<float> exp(Vec<float> x) { return exp_below_limit(at_most(89.0f, x)); }
FASTFLOW_INLINE Vec<float> exp_of_minus_absolute(Vec<float> x) { return exp_below_limit(minus_absolute<float>(x)); }

FASTFLOW_INLINE Vec<float> log(Split<float> x) {
  const Lanes<float> large = x.mantissa > 1.41421356f;
  const Vec<float> exponent = large ? x.exponent + 1.0f : x.exponent;
  const Vec<float> f = (large ? x.mantissa * 0.5f : x.mantissa) - 1.0f, square = f * f;
  Vec<float> p = f * -0.07353803f + 0.12615187f;
  p = p * f + -0.13203458f;
  p = p * f + 0.142281f;
  p = p * f + -0.16621315f;
  p = p * f + 0.19999766f;
  p = p * f + -0.25000852f;
  p = p * f + 0.33333355f;
  p = p * (f * square) + exponent * -2.12194440e-4f;
  p = (f + (p - 0.5f * square)) + exponent * 0.693359375f;
  return exponent < INFINITY ? p : exponent;
}

// log(1 + x) / x for 0 <= x <= 1.
FASTFLOW_INLINE Vec<float> log1p_ratio(Vec<float> x) {
  Vec<float> p = x * -0.0032268476f + 0.019789271f;
  p = p * x + -0.056879718f;
  p = p * x + 0.10600581f;
  p = p * x + -0.15307912f;
  p = p * x + 0.19678871f;
  p = p * x + -0.24955375f;
  p = p * x + 0.33330205f;
  p = p * x + -0.49999923f;
  return p * x + 1.0f;
}

// E / (E + 2) with E = exp(2x) - 1, whose relative error stays small near 0.
FASTFLOW_INLINE Vec<float> tanh(Vec<float> x) {
  const Vec<float> size = absolute<float>(x), twice = at_most(20.0f, size + size);
  const Vec<float> shifted = twice * 1.44269504f + round_bits, n = shifted - round_bits;
  Vec<float> r = twice - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float> p = r * 0.0013748304f + 0.008369301f;
  p = p * r + 0.041669626f;
  p = p * r + 0.16666515f;
  p = p * r + 0.49999988f;
  p = p * (r * r) + r;
  const Vec<float> power = (Vec<float>)(((Lanes<float>)shifted << 23) + (Lanes<float>)splat(1.0f));
  const Vec<float> e = p * power + (power - 1.0f);
  return copy_sign<float>(e / (e + 2.0f), x);
}

FASTFLOW_INLINE Vec<float> atan(Vec<float> x) {
  const Vec<float> size = absolute<float>(x);
  const Lanes<float> large = size > 1.0f;
  const Vec<float> t = (large ? splat(1.0f) : size) / (large ? size : splat(1.0f));
  const Vec<float> y = t * t;
  Vec<float> p = y * 0.002841484f + -0.016049758f;
  p = p * y + 0.04269273f;
  p = p * y + -0.07508143f;
  p = p * y + 0.10645326f;
  p = p * y + -0.14205821f;
  p = p * y + 0.19993135f;
  p = p * y + -0.33333126f;
  p = p * (y * t) + t;
  return copy_sign<float>(large ? 1.57079633f - p : p, x);
}

FASTFLOW_INLINE Vec<double> each_lane(Vec<double> x, double (*f)(double)) {
  for (int lane = 0; lane < width<double>; ++lane) x[lane] = f(x[lane]);
  return x;
}
FASTFLOW_INLINE Vec<double> exp(Vec<double> x) { return each_lane(x, ::exp); }
FASTFLOW_INLINE Vec<double> exp_of_minus_absolute(Vec<double> x) { return exp(minus_absolute<double>(x)); }
FASTFLOW_INLINE Vec<double> log(Split<double> x) {
  const Lanes<double> large = x.mantissa > 1.4142135623730951;
  const Vec<double> mantissa = large ? x.mantissa * 0.5 : x.mantissa;
  return each_lane(mantissa, ::log) + (large ? x.exponent + 1 : x.exponent) * 0.6931471805599453;
}
FASTFLOW_INLINE Vec<double> tanh(Vec<double> x) { return each_lane(x, ::tanh); }
FASTFLOW_INLINE Vec<double> atan(Vec<double> x) { return each_lane(x, ::atan); }
FASTFLOW_INLINE Vec<double> log1p_ratio(Vec<double> x) {
  return each_lane(x, [](double y) { return y == 0 ? 1.0 : ::log1p(y) / y; });
}

}  // namespace fastflow::FASTFLOW_ISA

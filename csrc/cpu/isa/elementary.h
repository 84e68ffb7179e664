// The elementary functions of the scale maps on vectors.
//
// Minimax polynomials, 1 to 2 ulp off; tests/test_elementary_cpu.py has the bound of each. NaN comes through; infinities,
// overflow and subnormal results are libm's.
#pragma once

#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

// The polynomials' coefficients, lowest first, and numbers in parts: a high one of few bits, so that its products with
// an exponent are exact, and a low one.
template <class T>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float round_bits = 0x1.8p23f;  // adding it leaves no bits for a fraction
  static constexpr float log2_e = 1.44269504f, ln_2_high = 0.693359375f, ln_2_low = -2.12194440e-4f;
  static constexpr float half_pi = 1.57079633f, sqrt_2 = 1.41421356f;
  static constexpr float exp_overflows = 89, exp_vanishes = -104, tanh_is_one = 10;
  // (exp(r) - 1 - r) / r^2, |r| <= ln(2) / 2
  static constexpr float exp[] = {0.49999988f, 0.16666515f, 0.041669626f, 0.008369301f, 0.0013748304f};
  // (log(1 + f) - f + f^2 / 2) / f^3, 1/sqrt(2) <= 1 + f <= sqrt(2)
  static constexpr float log[] = {0.33333355f, -0.25000852f, 0.19999766f, -0.16621315f,
                                  0.142281f,   -0.13203458f, 0.12615187f, -0.07353803f};
  // log(1 + x) / x, 0 <= x <= 1
  static constexpr float log1p_ratio[] = {1.0f,         -0.49999923f, 0.33330205f,   -0.24955375f, 0.19678871f,
                                          -0.15307912f, 0.10600581f,  -0.056879718f, 0.019789271f, -0.0032268476f};
  // (atan(t) / t - 1) / t^2 of t^2, 0 <= t <= 1
  static constexpr float atan[] = {-0.33333126f, 0.19993135f, -0.14205821f,  0.10645326f,
                                   -0.07508143f, 0.04269273f, -0.016049758f, 0.002841484f};
};

template <>
struct Constants<double> {
  static constexpr double round_bits = 0x1.8p52;
  static constexpr double log2_e = 1.4426950408889634, ln_2_high = 0x1.62e42fefa3800p-1, ln_2_low = 5.497923018708371e-14;
  static constexpr double half_pi = 1.5707963267948966, sqrt_2 = 1.4142135623730951;
  static constexpr double exp_overflows = 710, exp_vanishes = -746, tanh_is_one = 20;
  static constexpr double exp[] = {
      0.5000000000000006, 0.16666666666666588, 0.04166666666657675, 0.00833333333338954, 0.0013888888931565915,
      0.000198412697190445, 2.4801505272660478e-05, 2.7557407501675943e-06, 2.762603830243583e-07,
      2.5053789780891843e-08};
  static constexpr double log[] = {
      0.3333333333333314, -0.24999999999987976, 0.20000000000066606, -0.16666666669825841, 0.14285714280093917,
      -0.12499999691447271, 0.1111111114742506, -0.10000015206050632, 0.09090923933043907, -0.08332913546058089,
      0.07691529799897304, -0.07149439430523416, 0.06684589294408808, -0.06196679177865427, 0.056683768692623926,
      -0.05677780006244059, 0.06503491134687864, -0.059817138725293255, 0.026151028190707557};
  static constexpr double log1p_ratio[] = {
      1, -0.4999999999999946, 0.33333333333235043, -0.24999999993676414, 0.19999999791317793, -0.16666662498403761,
      0.14285658895928643, -0.12499479601186755, 0.11107505923124607, -0.09981014594769408, 0.09013152590351348,
      -0.08081209037479248, 0.07035538133113728, -0.05750197052512686, 0.042300079490076505, -0.026743939151108793,
      0.013838575337798515, -0.005543101854582836, 0.0015957386598957361, -0.0002917607022708928,
      2.5329889702817686e-05};
  static constexpr double atan[] = {
      -0.3333333333333186, 0.19999999999755017, -0.1428571427133476, 0.11111110678748155, -0.09090901235381911,
      0.07692212930402849, -0.0666586036207485, 0.05877307765753293, -0.052392329814076224, 0.04673949551803661,
      -0.04092638094536903, 0.03406780862766886, -0.025826793679244165, 0.016978032788549237, -0.009184557007393738,
      0.003855973776669863, -0.0011640713608239116, 0.00022302231183060373, -2.025854375918574e-05};
};

// By Horner: the number of multiply-adds is what binds here, not their latency.
template <class T, int count>
FASTFLOW_INLINE Vec<T> polynomial(Vec<T> x, const T (&c)[count]) {
  Vec<T> p = splat(c[count - 1]);
#pragma GCC unroll 32
  for (int i = count - 2; i >= 0; --i) p = p * x + c[i];
  return p;
}

// x = n ln 2 + r with |r| <= ln(2) / 2; the lowest bits of `shifted` are those of the integer n.
template <class T>
struct Reduced {
  Vec<T> shifted, n, r;
};

template <class T>
FASTFLOW_INLINE Reduced<T> reduce(Vec<T> x) {
  using C = Constants<T>;
  const Vec<T> shifted = x * C::log2_e + C::round_bits, n = shifted - C::round_bits;
  const Vec<T> r = x - n * C::ln_2_high;
  return {shifted, n, r - n * C::ln_2_low};
}

// 2^n for a normal one, by the bits of `shifted`. Unsigned, because those of a NaN overflow.
template <class T>
FASTFLOW_INLINE Vec<T> power(UnsignedLanes<T> shifted) {
  return (Vec<T>)((shifted << Register<T>::mantissa_bits) + (UnsignedLanes<T>)splat<T>(1));
}

// p 2^n, subnormal ones included.
template <class T>
FASTFLOW_INLINE Vec<T> scale_by_power(Vec<T> p, const Reduced<T>& x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) {
    return _mm512_scalef_ps(p, x.n);
  } else {
    return _mm512_scalef_pd(p, x.n);
  }
#else  // in two steps, so that the subnormal range is reached
  const UnsignedLanes<T> whole = (UnsignedLanes<T>)x.shifted, half = whole >> 1;
  return p * power<T>(half) * power<T>(whole - half);
#endif
}

template <class T>
FASTFLOW_INLINE Vec<T> exp_below_overflow(Vec<T> x) {
  using C = Constants<T>;
  const Reduced<T> reduced = reduce<T>(at_least(C::exp_vanishes, x));
  const Vec<T> r = reduced.r;
  return scale_by_power<T>((polynomial(r, C::exp) * r + 1) * r + 1, reduced);
}

template <class T>
FASTFLOW_INLINE Vec<T> exp(Vec<T> x) {
  return exp_below_overflow<T>(at_most(Constants<T>::exp_overflows, x));
}

template <class T>
FASTFLOW_INLINE Vec<T> exp_of_minus_absolute(Vec<T> x) {
  return exp_below_overflow<T>(minus_absolute<T>(x));
}

// 2^exponent (1 + f), 1/sqrt(2) <= 1 + f <= sqrt(2).
template <class T>
struct Centred {
  Vec<T> f, exponent;
};

template <class T>
FASTFLOW_INLINE Centred<T> centre(Split<T> x) {
  const Lanes<T> large = x.mantissa > Constants<T>::sqrt_2;
  return {(large ? x.mantissa * T(0.5) : x.mantissa) - 1, large ? x.exponent + 1 : x.exponent};
}

template <class T>
FASTFLOW_INLINE Vec<T> log(Centred<T> x) {
  using C = Constants<T>;
  const Vec<T> square = x.f * x.f, p = polynomial(x.f, C::log) * (x.f * square) + x.exponent * C::ln_2_low;
  const Lanes<T> finite = absolute<T>(x.exponent) < splat<T>(INFINITY);
  return finite ? (x.f + (p - T(0.5) * square)) + x.exponent * C::ln_2_high : x.exponent;
}

template <class T>
FASTFLOW_INLINE Vec<T> log(Split<T> x) {
  return log(centre<T>(x));
}

// log(1 + x) for x >= 0. What 1 + x rounds off counts as long as it is a digit of f = 2^-exponent (1 + x) - 1.
template <class T>
FASTFLOW_INLINE Vec<T> log1p(Vec<T> x) {
  const Centred<T> sum = centre<T>(split<T>(x + 1));
  const Vec<T> scale = power<T>((UnsignedLanes<T>)(Constants<T>::round_bits - sum.exponent));
  return log(Centred<T>{sum.exponent < 64 ? x * scale + (scale - 1) : sum.f, sum.exponent});
}

// log(1 + x) / x for 0 <= x <= 1.
template <class T>
FASTFLOW_INLINE Vec<T> log1p_ratio(Vec<T> x) {
  return polynomial(x, Constants<T>::log1p_ratio);
}

// scale e^r - 1 as the sum of two, for a power of two `scale` and |r| <= ln(2) / 2.
template <class T>
struct Expm1 {
  Vec<T> most, rest;
};

template <class T>
FASTFLOW_INLINE Expm1<T> expm1_in_parts(Vec<T> r, Vec<T> scale) {
  const Vec<T> scaled = r * scale;
  return {scaled + (scale - 1), polynomial(r, Constants<T>::exp) * (r * scaled)};
}

// e^x - 1 for x >= 0. Where 2^n may be beyond the largest number, half of it serves, and the 1 is lost in any case.
template <class T>
FASTFLOW_INLINE Vec<T> expm1(Vec<T> x) {
  const Reduced<T> reduced = reduce<T>(at_most(Constants<T>::exp_overflows, x));
  const Lanes<T> huge = reduced.n > Register<T>::exponent_bias - 1;
  const Vec<T> scale = power<T>((UnsignedLanes<T>)(huge ? reduced.shifted - 1 : reduced.shifted));
  const Expm1<T> e = expm1_in_parts<T>(reduced.r, scale);
  const Vec<T> sum = e.most + e.rest;
  return huge ? sum + sum : sum;
}

// e / (e + 2) with e = exp(2x) - 1, whose relative error stays small near 0.
template <class T>
FASTFLOW_INLINE Vec<T> tanh(Vec<T> x) {
  using C = Constants<T>;
  const Vec<T> size = absolute<T>(x);
  const Reduced<T> reduced = reduce<T>(at_most(2 * C::tanh_is_one, size + size));
  const Expm1<T> parts = expm1_in_parts<T>(reduced.r, power<T>((UnsignedLanes<T>)reduced.shifted));
  const Vec<T> e = parts.most + parts.rest, denominator = e + 2;
  Vec<T> ratio = e / denominator;
  if constexpr (sizeof(T) == sizeof(double)) {  // what the two sums lost is made good, by 1 / (e + 2) = (1 - tanh) / 2
    const Vec<T> lost = (parts.most - e) + parts.rest, lost_below = lost + (e - (denominator - 2));
    const Vec<T> correction = (lost - ratio * lost_below) * (T(0.5) - T(0.5) * ratio);
    ratio += size < 1 ? correction : Vec<T>{};
  }
  return copy_sign<T>(ratio, x);
}

template <class T>
FASTFLOW_INLINE Vec<T> atan(Vec<T> x) {
  using C = Constants<T>;
  const Vec<T> size = absolute<T>(x), one = splat<T>(1);
  const Lanes<T> large = size > 1;
  const Vec<T> t = (large ? one : size) / (large ? size : one), square = t * t;
  const Vec<T> p = polynomial(square, C::atan) * (square * t) + t;
  return copy_sign<T>(large ? C::half_pi - p : p, x);
}

}  // namespace fastflow::FASTFLOW_ISA

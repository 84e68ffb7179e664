// The elementary functions of the scale maps on vectors.
//
// Float: minimax polynomials, at most 2 ulp off (exp 1, log 1, log1p_ratio 1, atan 2; tanh 2, 3 below 0.1). NaN comes
// through; infinities, overflow and subnormal results are libm's. Double calls libm.
#pragma once

#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

// c[0] + c[1] x + c[2] x^2 + ... by Horner: the number of multiply-adds is what binds here, not their latency.
template <int count>
FASTFLOW_INLINE Vec<float> polynomial(Vec<float> x, const float (&c)[count]) {
  Vec<float> p = splat(c[count - 1]);
  for (int i = count - 2; i >= 0; --i) p = p * x + c[i];
  return p;
}

constexpr float round_bits = 12582912.0f;  // 1.5 2^23: adding it leaves no bits for a fraction

// p 2^n for integral n in [-150, 128].
FASTFLOW_INLINE Vec<float> scale_by_power(Vec<float> p, Vec<float> n) {
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else  // in two steps, so that the subnormal range is reached
  const Lanes<float> whole = __builtin_convertvector(n, Lanes<float>), half = whole >> 1;
  return p * (Vec<float>)((half + 127) << 23) * (Vec<float>)((whole - half + 127) << 23);
#endif
}

// For x <= 89, beyond which exp rounds to infinity.
FASTFLOW_INLINE Vec<float> exp_below_limit(Vec<float> x) {
  x = at_least(-104.0f, x);  // exp(-104) rounds to 0
  const Vec<float> n = (x * 1.44269504f + round_bits) - round_bits;
  Vec<float> r = x - n * 0.693359375f;  // ln 2 in two parts, the first exact in 9 bits
  r = r + n * 2.12194440e-4f;
  const Vec<float> p =
      polynomial(r, {1.0f, 1.0f, 0.49999988f, 0.16666515f, 0.041669626f, 0.008369301f, 0.0013748304f});
  return scale_by_power(p, n);
}

FASTFLOW_INLINE Vec<float> exp(Vec<float> x) { return exp_below_limit(at_most(89.0f, x)); }
FASTFLOW_INLINE Vec<float> exp_of_minus_absolute(Vec<float> x) { return exp_below_limit(minus_absolute<float>(x)); }

FASTFLOW_INLINE Vec<float> log(Split<float> x) {
  const Lanes<float> large = x.mantissa > 1.41421356f;
  const Vec<float> exponent = large ? x.exponent + 1.0f : x.exponent;
  const Vec<float> f = (large ? x.mantissa * 0.5f : x.mantissa) - 1.0f, square = f * f;
  Vec<float> p = polynomial(f, {0.33333355f, -0.25000852f, 0.19999766f, -0.16621315f, 0.142281f, -0.13203458f,
                                0.12615187f, -0.07353803f});
  p = p * (f * square) + exponent * -2.12194440e-4f;
  p = (f + (p - 0.5f * square)) + exponent * 0.693359375f;
  return exponent < INFINITY ? p : exponent;
}

// log(1 + x) / x for 0 <= x <= 1.
FASTFLOW_INLINE Vec<float> log1p_ratio(Vec<float> x) {
  return polynomial(x, {1.0f, -0.49999923f, 0.33330205f, -0.24955375f, 0.19678871f, -0.15307912f, 0.10600581f,
                        -0.056879718f, 0.019789271f, -0.0032268476f});
}

// e / (e + 2) with e = exp(2x) - 1, whose relative error stays small near 0.
FASTFLOW_INLINE Vec<float> tanh(Vec<float> x) {
  const Vec<float> size = absolute<float>(x), twice = at_most(20.0f, size + size);
  const Vec<float> shifted = twice * 1.44269504f + round_bits, n = shifted - round_bits;
  const Vec<float> r = twice - n * 0.69314718f;
  const Vec<float> p = polynomial(r, {0.49999988f, 0.16666515f, 0.041669626f, 0.008369301f, 0.0013748304f});
  const Vec<float> power = (Vec<float>)(((Lanes<float>)shifted << 23) + (Lanes<float>)splat(1.0f));  // 2^n
  const Vec<float> e = (p * (r * r) + r) * power + (power - 1.0f);
  return copy_sign<float>(e / (e + 2.0f), x);
}

FASTFLOW_INLINE Vec<float> atan(Vec<float> x) {
  const Vec<float> size = absolute<float>(x);
  const Lanes<float> large = size > 1.0f;
  const Vec<float> t = (large ? splat(1.0f) : size) / (large ? size : splat(1.0f)), square = t * t;
  Vec<float> p = polynomial(square, {-0.33333126f, 0.19993135f, -0.14205821f, 0.10645326f, -0.07508143f, 0.04269273f,
                                     -0.016049758f, 0.002841484f});
  p = p * (square * t) + t;
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
FASTFLOW_INLINE Vec<double> log1p_ratio(Vec<double> x) {
  return each_lane(x, [](double y) { return y == 0 ? 1.0 : ::log1p(y) / y; });
}
FASTFLOW_INLINE Vec<double> tanh(Vec<double> x) { return each_lane(x, ::tanh); }
FASTFLOW_INLINE Vec<double> atan(Vec<double> x) { return each_lane(x, ::atan); }

}  // namespace fastflow::FASTFLOW_ISA

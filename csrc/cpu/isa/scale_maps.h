// The scale maps: from the raw scale s to the multiplier m (c forward, 1/c inverse), log m and d log c / ds.
//
// A kernel that does not use a member of ScaleTerms does not compute it. Formulas as in fastflow/ops/affine_coupling.py,
// in forms that neither cancel nor overflow.
#pragma once

#include "log_det.h"

namespace fastflow::FASTFLOW_ISA {

template <class T>
struct Settings {
  T bias, eps, clamp;
  int interval;  // factors to multiply between two looks at the product's exponent
};

template <class T>
struct ScaleTerms {
  Vec<T> multiplier;
  Vec<T> term = Vec<T>{}, factor = Vec<T>{};  // log m = term + product_sign log(factor), or log(1 + factor)
  Vec<T> slope = Vec<T>{};                    // d log c / ds
  Vec<T> gain_slope = Vec<T>{};               // d log c / d gain
};

template <bool inverse, class T>
FASTFLOW_INLINE ScaleTerms<T> from_log(Vec<T> log_c, Vec<T> slope, Vec<T> gain_slope = Vec<T>{}) {
  const Vec<T> log_m = inverse ? -log_c : log_c;
  return {.multiplier = exp<T>(log_m), .term = log_m, .slope = slope, .gain_slope = gain_slope};
}

struct LogMap {
  static constexpr bool has_scale = true, has_gain = false, has_terms = true;
  static constexpr Product product = Product::none;
  static constexpr int product_sign(bool) { return 1; }
};

struct Additive : LogMap {
  static constexpr bool has_scale = false, has_terms = false;

  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>&, Vec<T>, Vec<T>) {
    return {.multiplier = splat<T>(1)};
  }
};

struct Exp : LogMap {
  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>&, Vec<T> s, Vec<T>) {
    return from_log<inverse, T>(s, splat<T>(1));
  }
};

// With e = exp(-|a|): sigmoid(a) = (a < 0 ? e : 1) / (1 + e), log sigmoid(a) = min(a, 0) - log(1 + e).
struct Sigmoid : LogMap {
  static constexpr Product product = Product::of_one_plus;
  static constexpr int product_sign(bool inverse) { return inverse ? 1 : -1; }

  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>& k, Vec<T> s, Vec<T>) {
    const Vec<T> a = s + k.bias, e = exp_of_minus_absolute<T>(a), denominator = e + 1;
    const Lanes<T> negative = a < 0;
    const Vec<T> numerator = negative ? e : splat<T>(1), log_numerator = negative ? a : Vec<T>{};
    const Vec<T> slope = (negative ? splat<T>(1) : e) / denominator;
    return {.multiplier = inverse ? denominator / numerator : numerator / denominator,
            .term = inverse ? -log_numerator : log_numerator, .factor = e, .slope = slope};
  }
};

struct InverseSigmoid : LogMap {
  static constexpr Product product = Product::of_one_plus;
  static constexpr int product_sign(bool inverse) { return Sigmoid::product_sign(!inverse); }

  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>& k, Vec<T> s, Vec<T> a) {
    ScaleTerms<T> terms = Sigmoid::template terms<!inverse, T>(k, s, a);
    terms.slope = -terms.slope;
    return terms;
  }
};

struct SigmoidPlusEps : LogMap {
  static constexpr bool has_terms = false;
  static constexpr Product product = Product::of_factors;

  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>& k, Vec<T> s, Vec<T>) {
    const Vec<T> a = s + k.bias, e = exp_of_minus_absolute<T>(a), denominator = e + 1;
    const Vec<T> numerator = (a < 0 ? e : splat<T>(1)) + k.eps * denominator;
    const Vec<T> m = inverse ? denominator / numerator : numerator / denominator;
    return {.multiplier = m, .factor = m, .slope = e / (denominator * numerator)};
  }
};

// softplus(a) = max(a, 0) + log(1 + e), e = exp(-|a|).
struct SoftplusPlusEps : LogMap {
  static constexpr bool has_terms = false;
  static constexpr Product product = Product::of_factors;
  static constexpr int product_sign(bool inverse) { return inverse ? -1 : 1; }

  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>& k, Vec<T> s, Vec<T>) {
    const Vec<T> a = s + k.bias, e = exp_of_minus_absolute<T>(a);
    const Lanes<T> negative = a < 0;
    const Vec<T> c = (negative ? Vec<T>{} : a) + e * log1p_ratio<T>(e) + k.eps;
    const Vec<T> slope = (negative ? e : splat<T>(1)) / ((e + 1) * c);
    return {.multiplier = inverse ? 1 / c : c, .factor = c, .slope = slope};
  }
};

struct GainTanh : LogMap {
  static constexpr bool has_gain = true;

  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>&, Vec<T> s, Vec<T> gain) {
    const Vec<T> t = tanh<T>(s);
    return from_log<inverse, T>(gain * t, gain * (1 - t * t), t);
  }
};

struct ClampTanh : LogMap {
  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>& k, Vec<T> s, Vec<T>) {
    const Vec<T> t = tanh<T>(s);
    return from_log<inverse, T>(k.clamp * t, k.clamp * (1 - t * t));
  }
};

// 2 (sigmoid(s) - 1/2) = tanh(s / 2).
struct ClampSigmoid : LogMap {
  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>& k, Vec<T> s, Vec<T>) {
    const Vec<T> t = tanh<T>(s * T(0.5));
    return from_log<inverse, T>(k.clamp * t, T(0.5) * k.clamp * (1 - t * t));
  }
};

struct ClampAtan : LogMap {
  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>& k, Vec<T> s, Vec<T>) {
    const T clamp = k.clamp * T(0.636);
    return from_log<inverse, T>(clamp * atan<T>(s), clamp / (s * s + 1));
  }
};

struct SoftClip : LogMap {
  template <bool inverse, class T>
  static FASTFLOW_INLINE ScaleTerms<T> terms(const Settings<T>& k, Vec<T> s, Vec<T>) {
    // Divisions, not products with reciprocals: an error of log c is multiplied by log c in c.
    const Vec<T> growth = absolute<T>(s) / k.clamp + 1;
    return from_log<inverse, T>(s / growth, 1 / (growth * growth));
  }
};

// visit(map) for an index of fastflow.ops.scale_map.KINDS.
template <class Visit>
auto with_scale_map(int kind, double eps, bool has_gain, Visit visit) {
  switch (kind) {
    case 1: return visit(Exp{});
    case 2: return eps == 0 ? visit(Sigmoid{}) : visit(SigmoidPlusEps{});
    case 3: return visit(SoftplusPlusEps{});
    case 4: return has_gain ? visit(GainTanh{}) : visit(ClampTanh{});  // without a gain it is a clamp of 1
    case 5: return visit(ClampAtan{});
    case 6: return visit(ClampTanh{});
    case 7: return visit(ClampSigmoid{});
    case 8: return visit(SoftClip{});
    case 9: return visit(InverseSigmoid{});
    default: return visit(Additive{});
  }
}

template <class T>
Settings<T> settings(int kind, double bias, double eps, double clamp) {
  // Eight factors of sigmoid + eps, or eight 1 + f with f <= 1, stay inside the range of a float; softplus is unbounded.
  const bool bounded = kind != 3 && (eps == 0 || (eps > 0x1p-14 && eps < 0x1p14));
  return {static_cast<T>(bias), static_cast<T>(eps), static_cast<T>(clamp), bounded ? 8 : 1};
}

}  // namespace fastflow::FASTFLOW_ISA

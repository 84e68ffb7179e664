// The log-determinant of a row: a compensated sum of terms plus the logarithm of a running product of factors.
//
// Sigmoid and softplus maps multiply and take one logarithm per row. Every `interval` factors the product's exponent is
// moved aside, so that it neither overflows nor underflows; terms are summed in parts of as many vectors.
#pragma once

#include "elementary.h"

namespace fastflow::FASTFLOW_ISA {

// What a scale map multiplies: nothing; factors f > 0; or 1 + f with f in [0, 1], where the product minus one is kept,
// so that it has its relative precision also when every f is small.
enum class Product { none, of_factors, of_one_plus };

template <class T>
struct LogDet {
  Vec<T> sum, lost, product, exponent;

  void add(Vec<T> part) {
    const Vec<T> total = sum + part, added = total - sum;
    lost += (sum - (total - added)) + (part - added);
    sum = total;
  }
};

template <class T, class Map>
inline LogDet<T> no_terms() {
  return {Vec<T>{}, Vec<T>{}, splat<T>(Map::product == Product::of_factors ? 1 : 0), Vec<T>{}};
}

template <class T, class Map>
class LogDetAccumulator {
 public:
  explicit LogDetAccumulator(int interval) : interval_(interval) {}

  // nullptr: from nothing.
  void start(const LogDet<T>* from) { total_ = from == nullptr ? no_terms<T, Map>() : *from; }

  FASTFLOW_INLINE void add(Vec<T> term, Vec<T> factor) {
    if constexpr (Map::has_terms) part_ += term;
    if constexpr (Map::product == Product::of_factors) total_.product *= factor;
    if constexpr (Map::product == Product::of_one_plus) total_.product += factor * (total_.product + 1);
    if (++pending_ == interval_) flush();
  }

  void finish(LogDet<T>& total) {
    flush();
    if constexpr (Map::has_terms) {
      total.sum = total_.sum;
      total.lost = total_.lost;
    }
    if constexpr (Map::product != Product::none) {
      total.product = total_.product;
      total.exponent = total_.exponent;
    }
  }

 private:
  void flush() {
    pending_ = 0;
    if constexpr (Map::has_terms) {
      total_.add(part_);
      part_ = Vec<T>{};
    }
    if constexpr (Map::product == Product::of_factors) {
      const Split<T> parts = split<T>(total_.product);
      total_.product = parts.mantissa;
      total_.exponent += parts.exponent;
    }
    if constexpr (Map::product == Product::of_one_plus) {
      const Lanes<T> large = total_.product >= 1;
      const Split<T> parts = split<T>(total_.product + 1);
      total_.product = large ? parts.mantissa - 1 : total_.product;
      total_.exponent += large ? parts.exponent : Vec<T>{};
    }
  }

  LogDet<T> total_ = no_terms<T, Map>();
  Vec<T> part_{};
  int pending_ = 0, interval_;
};

// Lane by lane the sum of the terms plus `sign` times the log of the product.
template <class T, class Map>
inline Vec<T> value(const LogDet<T>& total, T sign) {
  Vec<T> log_det = {};
  if constexpr (Map::has_terms) {
    // Beyond an infinity `lost` is NaN and means nothing.
    log_det = absolute<T>(total.sum) < splat<T>(INFINITY) ? total.sum + total.lost : total.sum;
  }
  if constexpr (Map::product == Product::of_factors) {
    const Split<T> parts = split<T>(total.product);
    log_det += sign * log(Split<T>{parts.mantissa, parts.exponent + total.exponent});
  }
  if constexpr (Map::product == Product::of_one_plus) {
    const Split<T> parts = split<T>(total.product + 1);
    const Vec<T> large = log(Split<T>{parts.mantissa, parts.exponent + total.exponent});
    const Lanes<T> small = (total.product <= 1) & (total.exponent == 0);
    log_det += sign * (small ? total.product * log1p_ratio<T>(total.product) : large);
  }
  return log_det;
}

// Lane r of the result is the total over the lanes of rows[r]: joins neighbouring lanes of two rows until one is left.
// Uses `rows` as scratch.
template <class T, class Map>
inline LogDet<T> join_lanes(LogDet<T>* rows) {
  constexpr std::make_integer_sequence<int, width<T>> lanes;
  for (int count = width<T> / 2; count > 0; count /= 2) {
    for (int i = 0; i < count; ++i) {
      const LogDet<T>&a = rows[2 * i], &b = rows[2 * i + 1];
      LogDet<T>& joined = rows[i];
      if constexpr (Map::has_terms) {
        const Pairs<T> sum = pairs<T>(a.sum, b.sum, lanes), lost = pairs<T>(a.lost, b.lost, lanes);
        joined.sum = sum.even;
        joined.lost = lost.even + lost.odd;
        joined.add(sum.odd);
      }
      if constexpr (Map::product != Product::none) {
        const Pairs<T> product = pairs<T>(a.product, b.product, lanes);
        const Pairs<T> exponent = pairs<T>(a.exponent, b.exponent, lanes);
        const Vec<T> joint = Map::product == Product::of_one_plus ? product.even + product.odd : Vec<T>{};
        joined.product = product.even * product.odd + joint;
        joined.exponent = exponent.even + exponent.odd;
      }
    }
  }
  return rows[0];
}

}  // namespace fastflow::FASTFLOW_ISA

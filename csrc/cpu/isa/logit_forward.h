// The logit of one vector of elements, for the kernels that take it; formulas as in fastflow/ops/logit.py.
#pragma once

#include "elementwise.h"

namespace fastflow::FASTFLOW_ISA {

// A row's log_det is gathered from a product of p (1 - p).
template <class T>
struct LogitForward {
  static constexpr bool has_terms = false;
  static constexpr Product product = Product::of_factors;
  static constexpr T product_sign = -1;

  FASTFLOW_INLINE Image<T> operator()(Vec<T> x) const {
    const Vec<T> p = x * (1 - alpha) + alpha / 2, rest = 1 - p, factor = p * rest, nan = splat<T>(NAN);
    const Lanes<T> outside = factor < 0;
    return {.z = outside ? nan : log(split<T>(p / rest)), .factor = outside ? nan : factor};
  }

  T alpha;
  // Eight factors p (1 - p) stay inside the range of a float unless alpha lets p come close to 0.
  int interval = alpha > T(0x1p-13) ? 8 : 1;
};

}  // namespace fastflow::FASTFLOW_ISA

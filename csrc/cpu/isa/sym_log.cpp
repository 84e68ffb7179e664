// sym_log and its backward for one instruction set; formulas as in fastflow/ops/sym_log.py.
#include "cpu/sym_log.h"

#include "elementwise.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

// A row's log_det is a sum of terms alone: -|z| forward, |z| for the inverse.
struct Terms {
  static constexpr bool has_terms = true;
  static constexpr Product product = Product::none;
  static constexpr int product_sign = 1, interval = 8;
};

template <class T>
struct Forward : Terms {
  FASTFLOW_INLINE Image<T> operator()(Vec<T> x) const {
    const Vec<T> size = log1p<T>(absolute<T>(x));
    return {.z = copy_sign<T>(size, x), .term = -size};
  }
};

template <class T>
struct Inverse : Terms {
  FASTFLOW_INLINE Image<T> operator()(Vec<T> z) const {
    const Vec<T> size = absolute<T>(z);
    return {.z = copy_sign<T>(expm1<T>(size), z), .term = size};
  }
};

// h sign(x), with sign(0) = 0.
template <class T>
FASTFLOW_INLINE Vec<T> with_sign(Vec<T> h, Vec<T> x) {
  return x > 0 ? h : (x < 0 ? -h : Vec<T>{});
}

template <class T>
struct Slope {
  FASTFLOW_INLINE Vec<T> operator()(Vec<T> x, Vec<T> g, Vec<T> h) const {
    return (g - with_sign<T>(h, x)) / (absolute<T>(x) + 1);
  }
};

template <class T>
struct InverseSlope {
  FASTFLOW_INLINE Vec<T> operator()(Vec<T> z, Vec<T> g, Vec<T> h) const {
    return g * exp<T>(absolute<T>(z)) + with_sign<T>(h, z);
  }
};

template <class T>
void forward(const SymLog& op, int64_t first_row, int64_t last_row) {
  if (op.inverse) return transform<T>(op, first_row, last_row, Inverse<T>{});
  transform<T>(op, first_row, last_row, Forward<T>{});
}

template <class T>
void backward(const SymLog& op, int64_t first_row, int64_t last_row) {
  if (op.inverse) return differentiate<T>(op, first_row, last_row, InverseSlope<T>{});
  differentiate<T>(op, first_row, last_row, Slope<T>{});
}

}  // namespace

void sym_log(const SymLog& op, int64_t first_row, int64_t last_row) {
  op.in_double ? forward<double>(op, first_row, last_row) : forward<float>(op, first_row, last_row);
}

void sym_log_backward(const SymLog& op, int64_t first_row, int64_t last_row) {
  op.in_double ? backward<double>(op, first_row, last_row) : backward<float>(op, first_row, last_row);
}

}  // namespace fastflow::FASTFLOW_ISA

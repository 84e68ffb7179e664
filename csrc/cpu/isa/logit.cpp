// logit and its backward for one instruction set; formulas as in fastflow/ops/logit.py.
#include "cpu/logit.h"

#include "logit_forward.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

// From terms -|z| and a product of 1 + exp(-|z|).
template <class T>
struct Inverse {
  static constexpr bool has_terms = true;
  static constexpr Product product = Product::of_one_plus;
  static constexpr T product_sign = -2;

  FASTFLOW_INLINE Image<T> operator()(Vec<T> z) const {
    const Vec<T> e = exp_of_minus_absolute<T>(z), sigmoid = (z < 0 ? e : splat<T>(1)) / (e + 1);
    return {.z = (sigmoid - alpha / 2) * stretch, .term = minus_absolute<T>(z), .factor = e};
  }

  T alpha, stretch = 1 / (1 - alpha);
  int interval = 8;
};

// With h = grad_log_det: (1 - alpha) / (p (1 - p)) (g + h (2 p - 1)).
template <class T>
struct Slope {
  FASTFLOW_INLINE Vec<T> operator()(Vec<T> x, Vec<T> g, Vec<T> h) const {
    const Vec<T> p = x * (1 - alpha) + alpha / 2, rest = 1 - p;
    return (g + h * (p - rest)) * ((1 - alpha) / (p * rest));
  }

  T alpha;
};

// g p (1 - p) / (1 - alpha) - h tanh(z / 2) with p = sigmoid(z), 1 - p and tanh from exp(-|z|) without cancellation.
template <class T>
struct InverseSlope {
  FASTFLOW_INLINE Vec<T> operator()(Vec<T> z, Vec<T> g, Vec<T> h) const {
    const Vec<T> e = exp_of_minus_absolute<T>(z), reciprocal = 1 / (e + 1);
    const Vec<T> tanh = copy_sign<T>((1 - e) * reciprocal, z);
    return g * (e * reciprocal * reciprocal) * stretch - h * tanh;
  }

  T alpha, stretch = 1 / (1 - alpha);
};

template <class T>
void forward(const Logit& op, int64_t first_row, int64_t last_row) {
  const T alpha = static_cast<T>(op.alpha);
  const T contraction = static_cast<T>(elements_of_row(op) * ::log1p(-op.alpha));
  if (op.inverse) return transform<T>(op, first_row, last_row, Inverse<T>{alpha}, -contraction);
  transform<T>(op, first_row, last_row, LogitForward<T>{alpha}, contraction);
}

template <class T>
void backward(const Logit& op, int64_t first_row, int64_t last_row) {
  const T alpha = static_cast<T>(op.alpha);
  if (op.inverse) return differentiate<T>(op, first_row, last_row, InverseSlope<T>{alpha});
  differentiate<T>(op, first_row, last_row, Slope<T>{alpha});
}

}  // namespace

void logit(const Logit& op, int64_t first_row, int64_t last_row) {
  op.in_double ? forward<double>(op, first_row, last_row) : forward<float>(op, first_row, last_row);
}

void logit_backward(const Logit& op, int64_t first_row, int64_t last_row) {
  op.in_double ? backward<double>(op, first_row, last_row) : backward<float>(op, first_row, last_row);
}

}  // namespace fastflow::FASTFLOW_ISA

"""The scale maps of `fastflow.ops.affine_coupling.ScaleMap`, for Triton kernels."""

import triton
import triton.language as tl

from .numerics import atan, divide, exp, log, log1p, tanh

# Indices in fastflow.ops.affine_coupling.KINDS.
(ADDITIVE, EXP, SIGMOID, SOFTPLUS, TANH, CLAMP_ATAN, CLAMP_TANH, CLAMP_SIGMOID, SOFT_CLIP,
 INVERSE_SIGMOID) = map(tl.constexpr, range(10))


@triton.jit
def scale_map(s, gain, KIND: tl.constexpr, BIAS: tl.constexpr, EPS: tl.constexpr, CLAMP: tl.constexpr,
              INVERSE: tl.constexpr):
    """(log c, the factor c or for the inverse 1/c, d log c / ds) of the raw scale s; gain None stands for 1."""
    if KIND == SIGMOID or KIND == SOFTPLUS:  # noqa: SIM109, Triton does not compile `in`
        a = s + BIAS
        e = exp(-tl.abs(a))
        larger = divide(1.0, 1.0 + e)
        smaller = e * larger
        sigmoid = tl.where(a >= 0, larger, smaller)
        complement = tl.where(a >= 0, smaller, larger)
        c = (sigmoid if KIND == SIGMOID else tl.where(a > 0, a, 0.0) + log1p(e)) + EPS
        if EPS == 0:  # a sigmoid, which underflows where its logarithm does not
            log_c = tl.where(a < 0, a, 0.0) - log1p(e)
            slope = complement
            factor = 1.0 / c if INVERSE else c
        else:
            reciprocal = divide(1.0, c)
            log_c = log(c)
            slope = sigmoid * (complement if KIND == SIGMOID else 1.0) * reciprocal
            factor = reciprocal if INVERSE else c
    elif KIND == INVERSE_SIGMOID:
        a = s + BIAS
        e = exp(-tl.abs(a))
        larger = divide(1.0, 1.0 + e)
        smaller = e * larger
        log_c = log1p(e) - tl.where(a < 0, a, 0.0)
        slope = -tl.where(a >= 0, smaller, larger)
        sigmoid = tl.where(a >= 0, larger, smaller)
        factor = sigmoid if INVERSE else 1.0 / sigmoid
    else:
        if KIND == EXP:
            log_c = s
            slope = tl.full(s.shape, 1.0, s.dtype)
        elif KIND == CLAMP_ATAN:
            log_c = CLAMP * 0.636 * atan(s)
            slope = CLAMP * 0.636 / (1.0 + s * s)
        elif KIND == SOFT_CLIP:
            growth = 1.0 + divide(tl.abs(s), tl.full(s.shape, CLAMP, s.dtype))
            log_c = divide(s, growth)
            slope = 1.0 / (growth * growth)
        elif KIND == CLAMP_SIGMOID:
            t = tanh(0.5 * s)
            log_c = CLAMP * t
            slope = 0.5 * CLAMP * (1.0 - t * t)
        else:
            t = tanh(s)
            log_c = CLAMP * t
            slope = CLAMP * (1.0 - t * t)
            if gain is not None:
                log_c = gain * t
                slope = gain * (1.0 - t * t)
        factor = exp(-log_c if INVERSE else log_c)
    return log_c, factor, slope

"""Elementary functions for Triton kernels in float32 and float64, each within 3 units of roundoff.

The hardware's fast exponential and logarithm err by more, and libdevice does not run in Triton's interpreter. These use
multiplication, fused multiply-add, division and the bits of the exponent; on a GPU only the float32 division (within 2
ulp) differs from what the interpreter computes, and `divide` corrects it. Every function keeps its relative accuracy
near its zero, and NaN stays NaN. Polynomials are power series with as many terms as the dtype needs on the reduced
interval. Constants reach tl.fma through tl.full, because before Triton 3.9 it rounds bare ones to float32.
"""

import math

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1 / math.log(2))
# ln 2 in two parts; the high part times an exponent is exact even without a fused multiply-add.
LN2_HIGH_32, LN2_LOW_32 = tl.constexpr(0.693359375), tl.constexpr(math.log(2) - 0.693359375)
LN2_HIGH_64, LN2_LOW_64 = tl.constexpr(6.93147180369123816490e-01), tl.constexpr(1.90821492927058770002e-10)
INVERSE_FACTORIAL = tl.constexpr(tuple(1 / math.factorial(n) for n in range(15)))
ONE_BITS_32, ONE_BITS_64 = tl.constexpr(0x3F800000), tl.constexpr(0x3FF0000000000000)
SQRT_HALF_BITS_32, SQRT_HALF_BITS_64 = tl.constexpr(0x3F3504F3), tl.constexpr(0x3FE6A09E667F3BCD)
QUARTER_PI = tl.constexpr(math.pi / 4)
TAN_EIGHTH_PI, TAN_THREE_EIGHTHS_PI = tl.constexpr(math.sqrt(2) - 1), tl.constexpr(math.sqrt(2) + 1)


@triton.jit
def divide(x, y):
    """x / y for finite y != 0, almost always correctly rounded."""
    reciprocal = 1.0 / y
    quotient = x * reciprocal
    return tl.fma(tl.fma(-quotient, y, x), reciprocal, quotient)


@triton.jit
def _reduced_exp(x):
    """(2^n, e^r - 1) with x = n ln 2 + r, |r| <= ln(2) / 2, if -126 <= n <= 127 (-1022 and 1023 in float64)."""
    DOUBLE: tl.constexpr = x.dtype == tl.float64
    MAGIC: tl.constexpr = 1.5 * 2.0**52 if DOUBLE else 1.5 * 2.0**23
    shifted = tl.fma(x, tl.full(x.shape, LOG2_E, x.dtype), tl.full(x.shape, MAGIC, x.dtype))  # n in its low bits
    n = shifted - MAGIC
    if DOUBLE:
        power = ((shifted.to(tl.int64, bitcast=True) << 52) + ONE_BITS_64).to(tl.float64, bitcast=True)
    else:
        power = ((shifted.to(tl.int32, bitcast=True) << 23) + ONE_BITS_32).to(tl.float32, bitcast=True)
    r = tl.fma(-n, tl.full(x.shape, LN2_HIGH_64 if DOUBLE else LN2_HIGH_32, x.dtype), x)
    r = tl.fma(-n, tl.full(x.shape, LN2_LOW_64 if DOUBLE else LN2_LOW_32, x.dtype), r)
    DEGREE: tl.constexpr = 14 if DOUBLE else 7
    series = tl.full(x.shape, INVERSE_FACTORIAL[DEGREE], x.dtype)
    for i in tl.static_range(DEGREE - 1, 1, -1):
        series = tl.fma(series, r, tl.full(x.shape, INVERSE_FACTORIAL[i], x.dtype))
    return power, tl.fma(r * r, series, r)


@triton.jit
def exp(x):
    """e^x; infinity above e^88.3 (e^709.4 in float64), zero below e^-87.3 (e^-708.3)."""
    LOW: tl.constexpr = -708.3 if x.dtype == tl.float64 else -87.3
    HIGH: tl.constexpr = 709.4 if x.dtype == tl.float64 else 88.3
    power, excess = _reduced_exp(x)
    result = tl.fma(power, excess, power)
    return tl.where(x > HIGH, float("inf"), tl.where(x < LOW, 0.0, result))  # comparisons let NaN through


@triton.jit
def expm1(x):
    """e^x - 1 for x >= 0; infinity above e^88.3 (e^709.4 in float64)."""
    power, excess = _reduced_exp(x)
    return tl.where(x > (709.4 if x.dtype == tl.float64 else 88.3), float("inf"), tl.fma(power, excess, power - 1.0))


@triton.jit
def _mantissa(u):
    """(k, 2^-k) with u 2^-k in [sqrt(1/2), sqrt(2)), for a normal u > 0 below 2^127."""
    if u.dtype == tl.float64:
        k = (u.to(tl.int64, bitcast=True) - SQRT_HALF_BITS_64) >> 52
        return k, (-(k << 52) + ONE_BITS_64).to(tl.float64, bitcast=True)
    else:
        k = (u.to(tl.int32, bitcast=True) - SQRT_HALF_BITS_32) >> 23
        return k, (-(k << 23) + ONE_BITS_32).to(tl.float32, bitcast=True)


@triton.jit
def _odd_series(y, TERMS: tl.constexpr):
    """1/3 + y/5 + y^2/7 + ...: atanh w = w + w^3 _odd_series(w^2), atan w = w - w^3 _odd_series(-w^2)."""
    series = tl.full(y.shape, 1 / (2 * TERMS + 1), y.dtype)
    for n in tl.static_range(TERMS - 1, 0, -1):
        series = tl.fma(series, y, tl.full(y.shape, 1 / (2 * n + 1), y.dtype))
    return series


@triton.jit
def _log_of_parts(k, f):
    """log(2^k (1 + f)) = k ln 2 + 2 atanh(f / (2 + f)), |f / (2 + f)| <= 0.172."""
    DOUBLE: tl.constexpr = f.dtype == tl.float64
    k = k.to(f.dtype)
    w = divide(f, 2.0 + f)
    w_squared = w * w
    series = _odd_series(w_squared, 11 if DOUBLE else 5)
    tail = tl.fma(w * w_squared, 2.0 * series, k * (LN2_LOW_64 if DOUBLE else LN2_LOW_32))
    return tl.fma(k, tl.full(f.shape, LN2_HIGH_64 if DOUBLE else LN2_HIGH_32, f.dtype), 2.0 * w + tail)


@triton.jit
def log(u):
    """log u for a normal u > 0 below 2^127."""
    k, power = _mantissa(u)
    return _log_of_parts(k, tl.fma(u, power, tl.full(u.shape, -1.0, u.dtype)))


@triton.jit
def log1p(x):
    """log(1 + x) for x > -1 below 2^127."""
    k, power = _mantissa(1.0 + x)
    return _log_of_parts(k, tl.fma(x, power, power - 1.0))


@triton.jit
def tanh(x):
    """tanh |x| = m / (m + 2) with m = e^(2|x|) - 1."""
    doubled = 2.0 * tl.abs(x)
    power, excess = _reduced_exp(tl.where(doubled > 40.0, 40.0, doubled))
    m = tl.fma(power, excess, power - 1.0)
    magnitude = divide(m, m + 2.0)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def atan(x):
    """atan x, reduced to |w| <= tan(pi/8) by atan x = pi/4 + atan((x - 1)/(x + 1)) = pi/2 - atan(1/x)."""
    t = tl.abs(x)
    low, high = t <= TAN_EIGHTH_PI, t > TAN_THREE_EIGHTHS_PI
    w = tl.where(low, t, tl.where(high, -1.0, t - 1.0)) / tl.where(low, 1.0, tl.where(high, t, t + 1.0))
    quarters = tl.where(low, 0.0, tl.where(high, 2.0, 1.0)).to(x.dtype)
    y = -w * w
    magnitude = quarters * QUARTER_PI + tl.fma(w * y, _odd_series(y, 22 if x.dtype == tl.float64 else 10), w)
    return tl.where(x < 0, -magnitude, magnitude)

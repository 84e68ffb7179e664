"""Logit: one kernel for both directions and one for the backward of both, each one pass over memory.

Two logarithms an element forward, an exponential and a logarithm for the inverse; in backward a division, and for the
inverse an exponential. Floor on an H200 at 4.3 TB/s, float32 [65536, 784]: forward 96 us, backward 143 us. Not
measured on a GPU yet.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from .elementwise import launch, launch_backward
from .numerics import divide, exp, log, log1p


@triton.jit
def _contracted(x, ALPHA: tl.constexpr):
    """(1 - alpha) x + alpha / 2."""
    return tl.fma(x, tl.full(x.shape, 1 - ALPHA, x.dtype), tl.full(x.shape, ALPHA / 2, x.dtype))


@triton.jit
def _log_from_zero(p):
    """log p, -infinity at 0, NaN below."""
    return tl.where(p > 0, log(p), tl.where(p == 0, float("-inf"), float("nan")))


@triton.jit
def logit_forward(x, ALPHA: tl.constexpr):
    """z, and what an element adds to log_det apart from the contraction."""
    p = _contracted(x, ALPHA)
    log_p, log_rest = _log_from_zero(p), _log_from_zero(1.0 - p)
    return log_p - log_rest, -log_p - log_rest


@triton.jit
def _map(x, SETTINGS: tl.constexpr):
    """(z, log_det) without what the contraction alone adds to log_det."""
    ALPHA: tl.constexpr = SETTINGS[0]
    INVERSE: tl.constexpr = SETTINGS[1]
    if INVERSE:
        e = exp(-tl.abs(x))
        larger = divide(1.0, 1.0 + e)
        z = (tl.where(x >= 0, larger, e * larger) - ALPHA / 2) * (1 / (1 - ALPHA))
        return z, -tl.abs(x) - 2.0 * log1p(e)
    else:
        return logit_forward(x, ALPHA)


@triton.jit
def _slope(x, g, h, SETTINGS: tl.constexpr):
    """(g + h (2 p - 1)) (1 - alpha) / (p (1 - p)) forward.

    For the inverse g p (1 - p) / (1 - alpha) - h tanh(x / 2) with p = sigmoid(x), from exp(-|x|) without cancellation.
    """
    ALPHA: tl.constexpr = SETTINGS[0]
    INVERSE: tl.constexpr = SETTINGS[1]
    if INVERSE:
        e = exp(-tl.abs(x))
        larger = divide(1.0, 1.0 + e)
        tanh = (1.0 - e) * larger
        return g * (e * larger * larger) * (1 / (1 - ALPHA)) - h * tl.where(x < 0, -tanh, tanh)
    else:
        p = _contracted(x, ALPHA)
        rest = 1.0 - p
        return (g + h * (p - rest)) * ((1 - ALPHA) / (p * rest))


def logit_cuda(x: Tensor, log_det: Tensor | None, alpha: float, inverse: bool) -> tuple[Tensor, Tensor]:
    """Launches the forward or inverse kernel: the arguments of the schema `fastflow::logit`, unchecked."""
    contraction = math.log1p(-alpha)
    return launch(x, log_det, _map, (alpha, inverse), 0.5, -contraction if inverse else contraction)


def logit_backward_cuda(grad_z: Tensor, grad_log_det: Tensor | None, x: Tensor, alpha: float, inverse: bool) -> Tensor:
    """Launches the backward kernel: the arguments of `fastflow::logit_backward`, unchecked."""
    return launch_backward(grad_z, grad_log_det, x, _slope, (alpha, inverse), 0.5)

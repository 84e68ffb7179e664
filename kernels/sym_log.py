"""Symmetric logarithm: one kernel for both directions and one for the backward of both, each one pass over memory.

A logarithm an element forward, an exponential for the inverse; in backward a division, or for the inverse an
exponential. Floor on an H200 at 4.3 TB/s, float32 [65536, 784]: forward 96 us, backward 143 us. Not measured on a GPU
yet.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from .elementwise import launch, launch_backward
from .numerics import exp, expm1, log1p

FAR, NEARER, LOG_FARTHER = tl.constexpr(2.0**100), tl.constexpr(2.0**-64), tl.constexpr(64 * math.log(2))


@triton.jit
def _log1p_to_infinity(size):
    """log(1 + size) for any size >= 0: numerics' ends below the largest numbers."""
    far = size > FAR
    near = log1p(tl.where(far, size * NEARER, size))
    return tl.where(size == float("inf"), size, tl.where(far, near + LOG_FARTHER, near))


@triton.jit
def _map(x, SETTINGS: tl.constexpr):
    """(z, log_det)."""
    INVERSE: tl.constexpr = SETTINGS[0]
    size = tl.abs(x)
    if INVERSE:
        mapped = expm1(size)
        own = size
    else:
        mapped = _log1p_to_infinity(size)
        own = -mapped
    return tl.where(x < 0, -mapped, mapped), own


@triton.jit
def _slope(x, g, h, SETTINGS: tl.constexpr):
    """(g - h sign(x)) / (1 + |x|) forward, g exp(|x|) + h sign(x) for the inverse; sign(0) = 0."""
    INVERSE: tl.constexpr = SETTINGS[0]
    size = tl.abs(x)
    signed = tl.where(x > 0, h, tl.where(x < 0, -h, 0.0))
    if INVERSE:
        return tl.fma(g, exp(size), signed)
    else:
        return (g - signed) / (1.0 + size)


def sym_log_cuda(x: Tensor, log_det: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    """Launches the forward or inverse kernel: the arguments of the schema `fastflow::sym_log`, unchecked."""
    return launch(x, log_det, _map, (inverse,), 0.0)


def sym_log_backward_cuda(grad_z: Tensor, grad_log_det: Tensor | None, x: Tensor, inverse: bool) -> Tensor:
    """Launches the backward kernel: the arguments of `fastflow::sym_log_backward`, unchecked."""
    return launch_backward(grad_z, grad_log_det, x, _slope, (inverse,), 0.0)

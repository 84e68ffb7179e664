"""Symmetric logarithm, an invertible activation: the identity near 0, a logarithm far from it.

    z = sign(x) log(1 + |x|)             log_det = -sum of log(1 + |x|) = -sum of |z|
    x = sign(z) (exp(|z|) - 1)           log_det = sum of |z|

TzK (Livne and Fleet 2018, arXiv 1811.01837).
"""

import torch
from torch import Tensor

from fastflow.ops._checks import check_dims, check_float, check_log_det, compute_dtype
from fastflow.ops._elementwise import call, define


def reference(x: Tensor, log_det: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    """The definition, in differentiable PyTorch. Arguments as in the schema."""
    v = x.to(compute_dtype(x))
    sign = torch.where(v < 0, -1.0, 1.0)  # of 0 too, where the slope is 1; that of |z| is 0 there
    if inverse:
        z, own = sign * torch.expm1(sign * v), v.abs()
    else:
        z = sign * torch.log1p(sign * v)
        own = -z.abs()
    own = own.flatten(1).sum(1)
    return z.to(x.dtype), own if log_det is None else log_det + own


def backward_reference(grad_z: Tensor, grad_log_det: Tensor | None, x: Tensor, inverse: bool) -> Tensor:
    """The gradient of the op's input x."""
    dtype = compute_dtype(x)
    v, g = x.to(dtype), grad_z.to(dtype)
    h = 0.0 if grad_log_det is None else grad_log_det.to(dtype).view(-1, *[1] * (x.dim() - 1)) * v.sign()
    grad = g * torch.exp(v.abs()) + h if inverse else (g - h) / (1 + v.abs())
    return grad.to(x.dtype)


_forward, _backward = define("sym_log", "bool inverse", reference, backward_reference)


def sym_log(x: Tensor, *, log_det: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """sign(x) log(1 + |x|), or its exact inverse.

    x        [B, C, *spatial], 2 to 5 dims, float64/float32/bfloat16/float16
    log_det  [B] running log-determinant in nats, float32 (float64 for float64 x)

    Returns (z, log_det), z in x's dtype. The inverse of a far z is infinite, in float32 from |z| = 88.3 on. Raises
    TypeError or ValueError naming the argument. Source: TzK, as above.
    """
    op = "sym_log"
    check_float(op, "x", x)
    check_dims(op, x)
    if log_det is not None:
        check_log_det(op, x, log_det)
    return call(_forward, _backward, x, log_det, inverse)

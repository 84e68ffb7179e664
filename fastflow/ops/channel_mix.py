"""Channel mixing, the invertible 1x1 convolution: z = W x on the channels of every pixel.

    log_det = pixels * log|det W|        x = W^-1 z

W is dense, or given by its factors W = P L (U + diag(sign exp(log_scale))), whose log|det| is the sum of log_scale and
whose inverse is two triangular solves. Determinant and inverse are computed in float64, once a call, whatever the
number of rows. Glow (Kingma and Dhariwal 2018, arXiv 1807.03039, section 3.2).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow.ops._checks import (
    bad_dtype,
    bad_shape,
    check_device,
    check_dims,
    check_float,
    compute_dtype,
    start_log_det,
)


class PLU(NamedTuple):
    """The factors of a [C, C] matrix P L (U + diag(sign exp(log_scale)))."""

    permutation: Tensor  # int64 [C]: row i of P M is row permutation[i] of M
    lower: Tensor        # [C, C], read strictly below the diagonal; L has ones on it
    upper: Tensor        # [C, C], read strictly above the diagonal
    log_scale: Tensor    # [C], nats
    sign: Tensor         # [C], +1 or -1


def plu(matrix: Tensor) -> PLU:
    """The factors of an invertible [C, C] matrix, float64; raises ValueError if it is singular."""
    p, lower, upper = torch.linalg.lu(matrix.double())
    diagonal = upper.diagonal()
    if not bool((diagonal != 0).all()):
        raise ValueError("plu: matrix is singular, expected an invertible one")
    return PLU(p.argmax(1), lower.tril(-1), upper.triu(1), diagonal.abs().log(), diagonal.sign())


def _triangles(factors: PLU) -> tuple[Tensor, Tensor]:
    """L and U with their diagonals, float64."""
    lower, upper, log_scale, sign = (value.double() for value in factors[1:])
    unit = torch.eye(lower.shape[0], dtype=torch.float64, device=lower.device)
    return lower.tril(-1) + unit, upper.triu(1) + unit * (sign * log_scale.exp())


def matrix(weight: Tensor | PLU, inverse: bool) -> tuple[Tensor, Tensor]:
    """(W or W^-1, its log|det|), in float64."""
    if isinstance(weight, PLU):
        lower, upper = _triangles(weight)
        log_abs_det = weight.log_scale.double().sum()
        if not inverse:
            return (lower @ upper)[weight.permutation], log_abs_det
        transposed = torch.eye(lower.shape[0], dtype=torch.float64, device=lower.device)[weight.permutation].T
        solved = torch.linalg.solve_triangular(lower, transposed, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, solved, upper=True), -log_abs_det
    weight = weight.double()
    log_abs_det = torch.linalg.slogdet(weight).logabsdet
    # inv_ex does not ask the device whether W was singular, which would be a synchronisation; log_det says it: -inf.
    return (torch.linalg.inv_ex(weight).inverse, -log_abs_det) if inverse else (weight, log_abs_det)


def channel_mix(x: Tensor, weight: Tensor | PLU, *, log_det: Tensor | None = None, inverse: bool = False,
                ) -> tuple[Tensor, Tensor]:
    """Multiplies the channels of every pixel by one matrix.

    x        [B, C, *spatial], 2 to 5 dims, float64/float32/bfloat16/float16
    weight   [C, C], z_i = sum_j weight[i, j] x_j, or its `PLU` factors
    log_det  [B] running log-determinant in nats, float32 (float64 for float64 x)

    Returns (z, log_det), z in x's dtype; `inverse=True` multiplies by the inverse matrix. A singular matrix gives
    log_det -inf. Raises TypeError or ValueError naming the argument.
    """
    op = "channel_mix"
    check_float(op, "x", x)
    check_dims(op, x)
    channels = x.shape[1]
    square, vector = (channels, channels), (channels,)
    if isinstance(weight, PLU):
        if weight.permutation.dtype != torch.int64:
            raise bad_dtype(op, "weight.permutation", weight.permutation, torch.int64)
        shapes = PLU(vector, square, square, vector, vector)
        parts = {f"weight.{name}": value for name, value in weight._asdict().items()}
    else:
        check_float(op, "weight", weight)
        shapes, parts = (square,), {"weight": weight}
    for (name, value), shape in zip(parts.items(), shapes, strict=True):
        if value.shape != shape:
            raise bad_shape(op, name, value, shape, "to match the channels of x")
    check_device(op, x, **parts)
    start = start_log_det(op, x, log_det)
    dtype = compute_dtype(x)
    mixing, log_abs_det = matrix(weight, inverse)
    mixing = mixing.to(dtype)
    # The state of a flow stays float32 where autocast runs its conditioners in 16 bits.
    with torch.autocast(x.device.type, enabled=False):
        z = x.to(dtype) @ mixing.T if x.dim() == 2 else (mixing @ x.to(dtype).flatten(2)).view(x.shape)
    return z.to(x.dtype), start + math.prod(x.shape[2:]) * log_abs_det.to(dtype)

"""Affine maps of the channels of a pixel, z = W (x - center) + shift: how W is parametrised, inverted and composed.

    dense         W itself                                          log|det W| by elimination
    PLU           P L (U + diag(sign exp(log_scale)))               sum of log_scale
    Householder   H_1 ... H_n,  H = I - 2 v v^T / (v^T v + 1e-16)   0
    QR            H_1 ... H_n (U + diag(scale))                     sum of log|scale|

Everything here is float64 and has C^2 numbers, whatever the number of rows. Glow (Kingma and Dhariwal 2018, arXiv
1807.03039, section 3.2), Emerging convolutions (Hoogeboom et al. 2019, arXiv 1901.11137, section 4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastflow.ops._checks import bad_dtype, bad_shape, check_device, check_float
from fastflow.ops.invert import invert, matrix_log_det


class PLU(NamedTuple):
    """The factors of a [C, C] matrix P L (U + diag(sign exp(log_scale)))."""

    permutation: Tensor  # int64 [C]: row i of P M is row permutation[i] of M
    lower: Tensor        # [C, C], read strictly below the diagonal; L has ones on it
    upper: Tensor        # [C, C], read strictly above the diagonal
    log_scale: Tensor    # [C], nats
    sign: Tensor         # [C], +1 or -1


class Householder(NamedTuple):
    """The reflections whose product H_1 ... H_n is the matrix."""

    vectors: Tensor  # [n, C], of any length but 0


class QR(NamedTuple):
    """The factors of a [C, C] matrix H_1 ... H_n (U + diag(scale))."""

    vectors: Tensor  # [n, C], of any length but 0
    upper: Tensor    # [C, C], read strictly above the diagonal
    scale: Tensor    # [C], not 0


Weight = Tensor | PLU | Householder | QR


class ChannelMap(NamedTuple):
    """z = matrix (x - center) + shift on the channels of every pixel; float64.

    A center is subtracted before it is multiplied, so that data far from the origin keep their digits.
    """

    matrix: Tensor                # [C, C]
    log_abs_det: Tensor           # [] of the matrix, nats
    center: Tensor | None = None  # [C]
    shift: Tensor | None = None   # [C]

    def then(self, other: ChannelMap) -> ChannelMap:
        """This map and after it the other."""
        shift = other.shift
        if self.shift is not None or other.center is not None:
            between = -other.center if self.shift is None else self.shift
            if self.shift is not None and other.center is not None:
                between = self.shift - other.center
            moved = other.matrix @ between
            shift = moved if shift is None else moved + shift
        return ChannelMap(other.matrix @ self.matrix, self.log_abs_det + other.log_abs_det, self.center, shift)


def plu(matrix: Tensor) -> PLU:
    """The factors of an invertible [C, C] matrix, float64; raises ValueError if it is singular."""
    p, lower, upper = torch.linalg.lu(matrix.double())
    diagonal = upper.diagonal()
    if not bool((diagonal != 0).all()):
        raise ValueError("plu: matrix is singular, expected an invertible one")
    return PLU(p.argmax(1), lower.tril(-1), upper.triu(1), diagonal.abs().log(), diagonal.sign())


def check_weight(op: str, weight: object, x: Tensor, channels: int) -> None:
    """Raises TypeError or ValueError unless weight fits the `channels` channels of x."""
    square, vector = (channels, channels), (channels,)
    if not isinstance(weight, PLU | Householder | QR):
        check_float(op, "weight", weight)
        parts, shapes = {"weight": weight}, (square,)
    else:
        parts = {f"weight.{name}": value for name, value in weight._asdict().items()}
        if isinstance(weight, PLU):
            if weight.permutation.dtype != torch.int64:
                raise bad_dtype(op, "weight.permutation", weight.permutation, torch.int64)
            shapes = vector, square, square, vector, vector
        else:
            vectors = (*weight.vectors.shape[:-1], channels)[:2]
            shapes = (vectors, square, vector)[: len(parts)]
    for (name, value), shape in zip(parts.items(), shapes, strict=True):
        if value.shape != shape:
            raise bad_shape(op, name, value, shape, "to match the channels of x")
    check_device(op, x, **parts)


def channel_map(weight: Weight, inverse: bool = False) -> ChannelMap:
    """z = W x, or x = W^-1 z, differentiable in the weight. A singular dense W gives log|det| -inf."""
    if isinstance(weight, PLU):
        lower, upper, log_scale, sign = (value.double() for value in weight[1:])
        product = (lower.tril(-1) + _unit(lower)) @ (upper.triu(1) + torch.diag(sign * log_scale.exp()))
        matrix, log_abs_det = product[weight.permutation], log_scale.sum()
    elif isinstance(weight, Householder):
        matrix = _reflections(weight.vectors)
        return ChannelMap(matrix.T if inverse else matrix, matrix.new_zeros(()))
    elif isinstance(weight, QR):
        scale = weight.scale.double()
        matrix = _reflections(weight.vectors) @ (weight.upper.double().triu(1) + torch.diag(scale))
        log_abs_det = scale.abs().log().sum()
    else:
        matrix = weight.double()
        if not inverse:
            return ChannelMap(matrix, matrix_log_det(matrix))
        inverted, log_abs_det = invert(matrix)
        return ChannelMap(inverted, -log_abs_det)
    return ChannelMap(invert(matrix)[0], -log_abs_det) if inverse else ChannelMap(matrix, log_abs_det)


def _reflections(vectors: Tensor) -> Tensor:
    """H_1 ... H_n, applied from the right to the identity."""
    vectors = vectors.double()
    product = torch.eye(vectors.shape[1], dtype=torch.float64, device=vectors.device)
    for v in vectors:
        product = product - torch.outer(product @ v, v) * (2 / (v @ v + 1e-16))
    return product


def _unit(like: Tensor) -> Tensor:
    return torch.eye(like.shape[0], dtype=torch.float64, device=like.device)

"""Linear maps of the features, or of the channels of every pixel: what the layers of all libraries share.

A map given by triangular factors, z = L U x + bias, costs two products, or two solves, of every row by a triangle, or
one product of every row by W = L U, or W^-1 = U^-1 L^-1, made first. Many rows take the latter. W and W^-1 are made in
float64: beside the rows they cost little, and what is rounded once is as exact as a product by both factors.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.fusion.layer import keep
from fastflow.ops._checks import COMPUTE_DTYPE
from fastflow.ops._define import under_transform, without_autocast
from fastflow.ops.channel_map import ChannelMap
from fastflow.ops.channel_mix import MOST_CHANNELS, map_channels
from fastflow.ops.permute import Order, reordered

# From so many rows a feature, and so many numbers, W or its inverse is made. Where the two ways cross they take equally
# long, so that rough bounds do.
_ROWS_A_FEATURE, _NUMBERS, _NUMBERS_INVERSE = 4, 2**16, 2**14


def keep_entries(layer: nn.Module) -> None:
    """Keeps where the entries of a layer belong in a matrix, for `entries_to_factors`: `lower_entries` in places
    `lower_indices`, `upper_entries` in `upper_indices`, and the diagonal."""
    size = layer.features
    place = np.arange(size * size).reshape(size, size)
    back = np.concatenate([place[layer.lower_indices], place[layer.upper_indices], place.diagonal()])
    back = torch.from_numpy(back).to(layer.lower_entries.device)
    keep(layer, "entries", back.argsort())
    keep(layer, "entries_back", back)


def entries_to_factors(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(factors, log|det|) in this dtype of a layer that `keep_entries` looked at, whose diagonal is softplus + eps."""
    lower, upper, diagonal = layer.lower_entries, layer.upper_entries, layer.unconstrained_upper_diag
    if lower.dtype != dtype:
        lower, upper, diagonal = (each.to(dtype) for each in (lower, upper, diagonal))
    diagonal = F.softplus(diagonal) + layer.eps
    entries = reordered(torch.cat([lower, upper, diagonal]), (layer._fused_entries, layer._fused_entries_back), 0)
    return entries.view(layer.features, layer.features), diagonal.log().sum()


def lu_linear(x: Tensor, factors: Tensor, log_abs_det: Tensor, bias: Tensor | None = None, *,
              order: Order | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """z = L U x[:, order[0]] + bias, or exactly its inverse.

    x            [B, D, *spatial], 2 to 5 dims, float64/float32/bfloat16/float16, any strides
    factors      [D, D], L strictly below the diagonal, its own being ones, and U on and above it; float64 for float64
                 x, else float32
    log_abs_det  [], nats, of L U; in the dtype of factors
    bias         [D], any of these dtypes

    Returns (z, log_det [B]), z in x's dtype. Arithmetic is float32 (float64 for float64 x), also under autocast.
    Arguments are trusted.
    """
    if pays(x, inverse):
        return by_matrix(x, lu_product(factors, inverse), log_abs_det, bias, order=order, inverse=inverse)
    if inverse:
        z = _of_rows(x, lambda rows: _solve(factors, rows if bias is None else rows - bias))
        z = z if order is None else reordered(z, order[::-1])
    else:
        z = _of_rows(x if order is None else reordered(x, order), lambda rows: _multiply(factors, rows, bias))
    return z, _of_every_row(-log_abs_det if inverse else log_abs_det, x)


def pays(x: Tensor, inverse: bool) -> bool:
    """Whether x has rows enough that a matrix, or an inverse, of its channels is made for them.

    Not for float64, which no wider dtype makes it exact for: then it would lose digits that solves keep. Nor of vectors
    in an exported graph, which is for any number of them.
    """
    features, rows = x.shape[1], x.shape[0] * math.prod(x.shape[2:])
    if x.dtype == torch.float64 or (x.dim() == 2 and torch.compiler.is_exporting()):
        return False
    return (x.dim() > 2 and features <= MOST_CHANNELS) or (
        rows >= _ROWS_A_FEATURE * features and rows * features >= (_NUMBERS_INVERSE if inverse else _NUMBERS))


def by_matrix(x: Tensor, matrix: Tensor, log_abs_det: Tensor, bias: Tensor | None, *, order: Order | None = None,
              inverse: bool = False) -> tuple[Tensor, Tensor]:
    """z = matrix x[:, order[0]] + bias, or with `inverse` and the inverse matrix what undoes it.

    log_abs_det is that of the map in the other direction, if `inverse`; all else is as in `lu_linear`.
    """
    if order is not None:
        matrix = reordered(matrix, order[::-1], 0 if inverse else 1)
    if inverse:
        return linear(x, ChannelMap(matrix, -log_abs_det, center=bias))
    return linear(x, ChannelMap(matrix, log_abs_det, shift=bias))


def linear(x: Tensor, given: ChannelMap) -> tuple[Tensor, Tensor]:
    """z = matrix (x - center) + shift and its log_det [B], by what is fastest for x; x and z as in `lu_linear`."""
    if x.dim() > 2 and given.matrix.shape[0] <= MOST_CHANNELS:
        return map_channels(x, given)
    dtype = COMPUTE_DTYPE[x.dtype]
    matrix, log_abs_det, center, shift = given
    if not matrix.dtype == log_abs_det.dtype == dtype:
        matrix, log_abs_det = matrix.to(dtype), log_abs_det.to(dtype)
    center, shift = (None if part is None else part.to(dtype) for part in (center, shift))
    z = _of_rows(x, lambda rows: F.linear(rows if center is None else rows - center, matrix, shift))
    return z, _of_every_row(log_abs_det, x)


def _of_every_row(log_abs_det: Tensor, x: Tensor) -> Tensor:
    pixels = math.prod(x.shape[2:])
    return (log_abs_det if pixels == 1 else pixels * log_abs_det) * log_abs_det.new_ones(x.shape[0])


def _of_rows(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """function of the pixels as rows [N, D] in the compute dtype; the result lies channels last."""
    dtype = COMPUTE_DTYPE[x.dtype]
    with without_autocast(x):
        if x.dim() == 2:
            return function(x) if x.dtype == dtype else function(x.to(dtype)).to(x.dtype)
        rows = x.movedim(1, -1).to(dtype)
        return function(rows.reshape(-1, x.shape[1])).view(rows.shape).movedim(-1, 1).to(x.dtype)


def _multiply(factors: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    upper = F.linear(rows, factors.triu())
    lower = torch.addmm(upper, upper, factors.tril(-1).mT)
    return lower if bias is None else lower + bias


def _solve(factors: Tensor, rows: Tensor) -> Tensor:
    lower = torch.linalg.solve_triangular(factors, rows.mT, upper=False, unitriangular=True)
    return torch.linalg.solve_triangular(factors, lower, upper=True).mT


def lu_product(factors: Tensor, inverse: bool) -> Tensor:
    """L U, or its inverse, rounded once to the dtype of the factors, which are as in `lu_linear`."""
    differentiable = torch.is_grad_enabled() and factors.requires_grad and not under_transform()
    return _Product.apply(factors, inverse) if differentiable else _product(factors, inverse)


def _product(factors: Tensor, inverse: bool) -> Tensor:
    exact = factors.double()
    if inverse:
        one = torch.eye(factors.shape[0], dtype=exact.dtype, device=exact.device)
        lower = torch.linalg.solve_triangular(exact, one, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(exact, lower, upper=True).to(factors.dtype)
    upper = exact.triu()
    return torch.addmm(upper, exact.tril(-1), upper).to(factors.dtype)  # float64 is nothing that autocast touches


class _Product(torch.autograd.Function):
    """`_product`. With V = (L U)^-1 and G its gradient, those of L and U are -V^T G L^-T and -U^-T G V^T: by way of the
    gradient of L U, which is -V^T G V^T, they would lose as many digits as the inverse has."""

    @staticmethod
    def forward(ctx, factors, inverse):
        made = _product(factors, inverse)
        ctx.save_for_backward(factors, made if inverse else None)
        return made

    @staticmethod
    def backward(ctx, grad):
        factors, inverse = ctx.saved_tensors
        with without_autocast(grad):
            if inverse is None:
                lower, upper = grad @ factors.triu().mT, torch.addmm(grad, factors.tril(-1).mT, grad)
                return lower.tril(-1) + upper.triu(), None
            solve = torch.linalg.solve_triangular
            lower = solve(factors.mT, inverse.mT @ grad, upper=True, unitriangular=True, left=False)
            upper = solve(factors.mT, grad @ inverse.mT, upper=False)
            return -(lower.tril(-1) + upper.triu()), None

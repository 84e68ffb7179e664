"""FrEIA: fixed or learned maps of the channels, by a permutation where the matrix is one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.ops._define import without_autocast
from fastflow.ops.packing import has_channels_last
from fastflow.ops.permute import reordered


def as_permutation(matrix: Tensor) -> Tensor | None:
    """The order in which a [C, C] matrix of zeros and ones takes the channels; None if it does more than that."""
    matrix = matrix.detach()
    ones = matrix == 1
    single = bool((ones.sum(0) == 1).all() and (ones.sum(1) == 1).all() and (matrix.count_nonzero() == len(matrix)))
    return ones.to(torch.uint8).argmax(1) if single else None


def permuted(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """z[:, i] = x[:, order[i]], laid out like x; `back` is the inverse permutation."""
    if has_channels_last(x):
        return reordered(x.movedim(1, -1), (order, back), -1).movedim(-1, 1)
    return reordered(x, (order, back))


def mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """matrix times the channels of every pixel, laid out like x."""
    with without_autocast(x):
        if x.dim() == 2:
            return F.linear(x, matrix)
        if has_channels_last(x):
            return F.linear(x.movedim(1, -1), matrix).movedim(-1, 1)
        return (matrix @ x.flatten(2)).view(x.shape)


def reflections(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(V, T V) of the reflections H_1 ... H_n = I - V^T T V at the rows of `vectors` [n, C], float64.

    T is triangular, T^-1 = triu(V V^T) - diag(V V^T) / 2 (Puglisi 1992, the compact WY representation).
    """
    vectors = vectors.double()
    gram = vectors @ vectors.T
    inverse = gram.triu() - 0.5 * torch.diag(gram.diagonal())
    return vectors, torch.linalg.solve_triangular(inverse, vectors, upper=True)

"""The inverse of a small matrix and its log|det| at once, in float64.

    grad_matrix = grad_log_abs_det M^-T - M^-T grad_inverse M^-T

so that backward takes products only. One elimination, by rows with pivots, gives both.
"""

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._define import Op, under_transform

MOST_ROWS = 64  # of the kernel; a larger matrix keeps the vendor's library busy


def reference(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, in differentiable PyTorch."""
    # inv_ex does not ask the device whether the matrix was singular, which would be a synchronisation; -inf says it.
    return torch.linalg.inv_ex(matrix).inverse, torch.linalg.slogdet(matrix).logabsdet


def _fallback(matrix: Tensor) -> tuple[Tensor, Tensor]:
    inverse, log_abs_det = reference(matrix)
    return inverse.contiguous(), log_abs_det


_forward = Op("invert", "(Tensor matrix) -> (Tensor, Tensor)", reference=reference, fallback=_fallback,
              fake=lambda matrix: (matrix.new_empty(matrix.shape), matrix.new_empty(())), on_cuda="cuda")


class _Invert(torch.autograd.Function):
    """Saves the inverse."""

    @staticmethod
    def forward(ctx, matrix, kernel):
        inverse, log_abs_det = kernel(matrix)
        ctx.save_for_backward(inverse)
        ctx.set_materialize_grads(False)
        return inverse, log_abs_det

    @staticmethod
    def backward(ctx, grad_inverse, grad_log_abs_det):
        (inverse,) = ctx.saved_tensors
        grad = None if grad_log_abs_det is None else grad_log_abs_det * inverse.T
        if grad_inverse is not None:
            of_inverse = inverse.T @ grad_inverse @ inverse.T
            grad = -of_inverse if grad is None else grad - of_inverse
        return grad, None


def invert(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(M^-1, log|det M| in nats) of a float64 [C, C] matrix; -inf, and no inverse, if it is singular.

    A part of other ops: where "triton" is forced, which has no kernel of this one, that of "cuda" serves.
    """
    backend = _backend.forced()
    if backend == "reference" or under_transform() or matrix.shape[0] > MOST_ROWS:
        return reference(matrix)
    on_cuda = backend == "cuda" or (
        backend == "triton" and matrix.is_cuda and _backend.state("cuda").status != "unavailable")
    kernel = _forward.kernel("cuda" if on_cuda else None, matrix.device.type)
    return _Invert.apply(matrix, kernel) if torch.is_grad_enabled() and matrix.requires_grad else kernel(matrix)


def matrix_log_det(matrix: Tensor) -> Tensor:
    """log|det M| alone: of a larger matrix the inverse would take most of the time."""
    return invert(matrix)[1] if matrix.shape[0] <= MOST_ROWS else torch.linalg.slogdet(matrix).logabsdet

"""A fixed permutation of the channels: z[:, i] = x[:, permutation[i]]. log_det is 0.

Reversed or shuffled channels let couplings of fixed halves reach all of them; channel mixing learns what this fixes
(Glow, Kingma and Dhariwal 2018, arXiv 1807.03039, section 3.2).
"""

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import bad_dtype, bad_shape, bad_type, check_device, check_dims, is_readable
from fastflow.ops._define import Op, under_transform

Order = tuple[Tensor, Tensor]  # a permutation and its inverse


def reference(x: Tensor, order: Tensor) -> Tensor:
    """The definition on a matrix: column order[i] of x in place i."""
    return x.index_select(1, order)


_columns = Op("permute_columns", "(Tensor x, Tensor order) -> Tensor", reference=reference, fallback=reference,
              fake=lambda x, order: x.new_empty(x.shape))


def _selected(x: Tensor, order: Tensor, dim: int) -> Tensor:
    """x with what was at place order[i] of a dim in place i."""
    if (x.dim() == 2 and dim in (1, -1) and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
            and not torch.compiler.is_compiling() and not under_transform() and _backend.forced() in (None, "cpu")):
        return _columns.kernel(_backend.forced(), "cpu")(x, order)
    return x.index_select(dim, order)


class _Reordered(torch.autograd.Function):
    """The gradient of a selection is a sum into place; that of a permutation is a selection too."""

    @staticmethod
    def forward(ctx, x, there, back, dim):
        ctx.dim = dim
        ctx.save_for_backward(there, back)
        return _selected(x, there, dim)

    @staticmethod
    def backward(ctx, grad_z):
        there, back = ctx.saved_tensors
        return reordered(grad_z, (back, there), ctx.dim), None, None, None


def reordered(x: Tensor, order: Order, dim: int = 1) -> Tensor:
    """x with what was at place order[0][i] of a dim in place i. Arguments are trusted."""
    plain = not (x.requires_grad and torch.is_grad_enabled()) or under_transform()
    return _selected(x, order[0], dim) if plain else _Reordered.apply(x, *order, dim)


def inverted(op: str, permutation: object) -> Tensor:
    """The inverse permutation; raises TypeError or ValueError if `permutation` is none, as far as a look is free."""
    if not isinstance(permutation, Tensor):
        raise bad_type(op, "permutation", permutation)
    if permutation.dtype not in (torch.int64, torch.int32):
        raise bad_dtype(op, "permutation", permutation, "int64 or int32")
    if permutation.dim() != 1:
        raise bad_shape(op, "permutation", permutation, "[C]")
    ordered, back = permutation.sort()
    if is_readable(permutation):
        values, expected = ordered.tolist(), f"expected each of 0 to {len(permutation) - 1} once"
        for index, value in enumerate(values):
            if not 0 <= value < len(values):
                raise ValueError(f"{op}: permutation has the value {value}, {expected}")
            if index and value == values[index - 1]:
                raise ValueError(f"{op}: permutation has the value {value} more than once, {expected}")
    return back


def permute(x: Tensor, permutation: Tensor, *, inverse: bool = False) -> Tensor:
    """Puts channel permutation[i] of x in place i; with `inverse` puts it back.

    x            [B, C, *spatial], 2 to 5 dims, of any dtype
    permutation  [C] int64 or int32, each of 0 to C - 1 once; on a CPU that is checked

    Returns a tensor like x. Forward and gradient are a selection: of float matrices on a CPU a kernel's, of others
    PyTorch's. Raises TypeError or ValueError naming the argument.
    """
    op = "permute"
    if not isinstance(x, Tensor):
        raise bad_type(op, "x", x)
    check_dims(op, x)
    order = permutation, inverted(op, permutation)
    if len(permutation) != x.shape[1]:
        raise bad_shape(op, "permutation", permutation, tuple(x.shape[1:2]), "to match the channels of x")
    check_device(op, x, permutation=permutation)
    return reordered(x, order[::-1] if inverse else order)

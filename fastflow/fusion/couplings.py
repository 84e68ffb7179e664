"""What the couplings of all libraries share: how channels are split, and how both halves' gradients meet."""

import torch
from torch import Tensor, nn

from fastflow import _backend
from fastflow.fusion.layer import keep
from fastflow.ops._define import under_transform
from fastflow.ops.permute import _Permute


def keep_split(layer: nn.Module, passive: list[int], active: list[int]) -> None:
    """Keeps the channels as `_fused_split`, two slices. Where they follow none, they are of channels in another order,
    which `gathered` and `scattered` make and undo."""
    slices, order, back = (_as_slice(passive), _as_slice(active)), None, None
    if None in slices:
        device = next((each.device for each in layer.buffers()), None)
        order = torch.tensor([*passive, *active], device=device)
        back = order.argsort()
        slices = slice(0, len(passive)), slice(len(passive), len(order))
    for name, value in (("split", slices), ("order", order), ("back", back)):
        keep(layer, name, value)


def _as_slice(indices: list[int]) -> slice | None:
    """The channels as a slice with a step of at least 1; None where they do not follow one."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if not indices or step < 1 or indices != list(range(indices[0], indices[0] + step * len(indices), step)):
        return None
    return slice(indices[0], indices[-1] + 1, step)


def gathered(layer: nn.Module, x: Tensor) -> Tensor:
    """x with its channels in the order of the layer's `_fused_split`."""
    return _reordered(x, layer._fused_order, layer._fused_back)


def scattered(layer: nn.Module, z: Tensor) -> Tensor:
    """Undoes `gathered`."""
    return _reordered(z, layer._fused_back, layer._fused_order)


def _reordered(x: Tensor, there: Tensor | None, back: Tensor | None) -> Tensor:
    if there is None:
        return x
    return x.index_select(1, there) if under_transform() else _Permute.apply(x, there, back)


class _Fork(torch.autograd.Function):
    """x twice: for the coupling, and its passive channels for the conditioner.

    Autograd's own slice would fill a tensor of x's size with zeros and the passive gradient, and add that to the other.
    """

    @staticmethod
    def forward(ctx, x, passive):
        ctx.passive = passive
        ctx.set_materialize_grads(False)
        ctx.shape = x.shape
        return x.view_as(x), x[:, passive]

    @staticmethod
    def backward(ctx, grad_x, grad_passive):
        if grad_passive is None:
            return grad_x, None
        if grad_x is None:
            grad_x = grad_passive.new_zeros(ctx.shape)
        elif torch.is_grad_enabled() or torch.compiler.is_compiling():
            grad_x = grad_x.clone()
        grad_x[:, ctx.passive] += grad_passive  # the coupling's gradient is this node's alone
        return grad_x, None


def fork(x: Tensor, passive: slice, alone: bool = True) -> tuple[Tensor, Tensor]:
    """(x for the coupling, its passive channels for the conditioner).

    `alone` says that the gradient of the former is a tensor of its own, as that of every coupling but the additive is.
    """
    if not (alone and x.requires_grad and torch.is_grad_enabled()) or under_transform() or torch.jit.is_tracing() or (
            _backend.forced() == "reference"):
        return x, x[:, passive]
    return _Fork.apply(x, passive)


def conditioned(conditioner: nn.Module, given: Tensor, *context: Tensor | None) -> Tensor:
    """What the conditioner makes of passive channels, which are a view of the layer's input.

    Raises RuntimeError if it changed them: a library that copies them first would not have minded.
    """
    watched = not (torch.compiler.is_compiling() or given.is_inference())
    version = given._version if watched else 0
    made = conditioner(given, *context)
    if watched and given._version != version:
        raise RuntimeError("fuse: a conditioner writes to its input in place, which is the layer's own input, expected "
                           "it to write elsewhere: change its first layer, or unfuse the model")
    return made

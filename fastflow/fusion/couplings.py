"""What the couplings of all libraries share: how channels are split, and how conditioners are called."""

import torch
from torch import Tensor, nn

from fastflow.fusion.layer import keep
from fastflow.ops.permute import reordered


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
    order = layer._fused_order
    return x if order is None else reordered(x, (order, layer._fused_back))


def scattered(layer: nn.Module, z: Tensor) -> Tensor:
    """Undoes `gathered`."""
    order = layer._fused_order
    return z if order is None else reordered(z, (layer._fused_back, order))


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

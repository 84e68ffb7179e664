"""Scale and shift packed in dim 1 of one tensor, as conditioners return them."""

import torch
from torch import Tensor

# The index in this tuple is the `packing` of the schemas and of every kernel.
PACKINGS = ("scale_shift", "shift_scale", "scale_shift_interleaved", "shift_scale_interleaved")


def unpack(parameters: Tensor, packing: int) -> tuple[Tensor, Tensor]:
    """(scale, shift) as views [B, n, *spatial] of parameters [B, 2 n, *spatial]."""
    first, second = (parameters[:, 0::2], parameters[:, 1::2]) if packing >= 2 else parameters.chunk(2, 1)
    return (second, first) if packing % 2 else (first, second)


def pack(scale: Tensor, shift: Tensor, packing: int) -> Tensor:
    """The parameters [B, 2 n, *spatial] that `unpack` takes apart."""
    parts = (shift, scale) if packing % 2 else (scale, shift)
    if packing < 2:
        return torch.cat(parts, 1)
    # Not flatten, which PyTorch has no batching rule for where gradients come in batches.
    return torch.stack(parts, 2).reshape(scale.shape[0], 2 * scale.shape[1], *scale.shape[2:])


def empty_packed(scale: Tensor) -> Tensor:
    """Uninitialised parameters whose scale looks like the given one."""
    return empty_channels(scale, 2 * scale.shape[1])


def has_channels_last(x: Tensor) -> bool:
    """Whether the channels of x [B, C, *spatial] lie closer to each other than its pixels."""
    return x.dim() >= 4 and x.stride(1) < x.stride(-1)


def empty_channels(like: Tensor, channels: int) -> Tensor:
    """Uninitialised [B, channels, *spatial]: channels last where `like` has them last, or contiguous."""
    shape = (like.shape[0], channels, *like.shape[2:])
    layout = torch.contiguous_format
    if has_channels_last(like):
        layout = torch.channels_last if like.dim() == 4 else torch.channels_last_3d
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)

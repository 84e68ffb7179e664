"""normflows: Squeeze, and Split and Merge by checkerboard."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.fusion.layer import Arithmetic, Layer, anything, digest, original_class
from fastflow.ops._define import under_transform
from fastflow.ops.permute import Order, reordered

CHECKERBOARDS = ("checkerboard", "checkerboard_inv")
MODES = ("channel", "channel_inv", *CHECKERBOARDS)
_NARROW = 8  # pixels a row up to which PyTorch's pixel shuffle is faster than its permuted copy


class Squeeze(Arithmetic):
    """Squeeze; `forward` un-squeezes."""

    def forward(self, z: Tensor) -> tuple[Tensor, int]:
        return (F.pixel_shuffle(z, 2), 0) if _is_narrow(z, 2) else super().forward(z)

    def inverse(self, z: Tensor) -> tuple[Tensor, int]:
        return (F.pixel_unshuffle(z, 2), 0) if _is_narrow(z, 1) else super().inverse(z)


def _is_narrow(z: Tensor, times: int) -> bool:
    """Whether images are that `times` wider than z; of no images PyTorch has no gradient."""
    return z.dim() == 4 and times * z.shape[3] <= _NARROW and z.shape[0] > 0 and z.is_contiguous()


class Split(Arithmetic):
    """Split; halves of the channels are views already, and one cat."""

    def forward(self, z: Tensor) -> tuple[list[Tensor], int]:
        return _taken_apart(z, self.mode) if self.mode in CHECKERBOARDS else super().forward(z)

    def inverse(self, z: list[Tensor]) -> tuple[Tensor, int]:
        return _joined(z, self.mode) if self.mode in CHECKERBOARDS else super().inverse(z)


class Merge(Arithmetic):
    """Merge, which is Split with both directions exchanged."""

    def forward(self, z: list[Tensor]) -> tuple[Tensor, int]:
        return _joined(z, self.mode) if self.mode in CHECKERBOARDS else super().forward(z)

    def inverse(self, z: Tensor) -> tuple[list[Tensor], int]:
        return _taken_apart(z, self.mode) if self.mode in CHECKERBOARDS else super().inverse(z)


def _taken_apart(z: Tensor, mode: str) -> tuple[list[Tensor], int]:
    parts = by_colour(z, mode).unflatten(1, (2, -1)).unbind(1)
    return [part.clone(memory_format=torch.contiguous_format) for part in parts], 0


def _joined(z: list[Tensor], mode: str) -> tuple[Tensor, int]:
    return from_colours(torch.cat(z, 1), mode), 0


def by_colour(z: Tensor, mode: str) -> Tensor:
    """[B, 2 C, ..., W / 2] of z [B, C, ..., W]: first the elements whose indices after that of the row sum to an odd
    number, then the others; for "checkerboard_inv" the even ones first."""
    first = (2 * z.shape[1], *z.shape[2:-1], z.shape[-1] // 2) if z.dim() > 2 else z.shape[1:]
    return reordered(z.flatten(1), _colours(z, z.shape[1:], mode)).view(z.shape[0], *first)


def from_colours(z: Tensor, mode: str) -> Tensor:
    """Undoes `by_colour`."""
    shape = (z.shape[1] // 2, *z.shape[2:-1], 2 * z.shape[-1]) if z.dim() > 2 else z.shape[1:]
    return reordered(z.flatten(1), _colours(z, shape, mode)[::-1]).view(z.shape[0], *shape)


def _colours(z: Tensor, shape: tuple[int, ...], mode: str) -> Order:
    plain = type(z) is Tensor and not (torch.compiler.is_compiling() or under_transform())
    return (_kept_order if plain else _order)(tuple(shape), mode == CHECKERBOARDS[1], z.device)


def _order(shape: tuple[int, ...], inverted: bool, device: torch.device) -> Order:
    """The order of a row's elements by colour, and its inverse."""
    *leading, width = shape
    if width % 2:
        raise ValueError(f"checkerboard: z has shape (B, {', '.join(map(str, shape))}), expected an even last dim")
    row = torch.arange(math.prod(leading), device=device).view(*leading, 1)
    colour = sum(torch.arange(size, device=device).view(size, *[1] * (len(leading) - dim))
                 for dim, size in enumerate(leading)) + torch.zeros_like(row)
    left = width * row + torch.arange(0, width, 2, device=device)
    odd, even = left + (colour + 1) % 2, left + colour % 2
    order = torch.stack([even, odd] if inverted else [odd, even]).flatten()
    return order, order.argsort()


@lru_cache(maxsize=64)
def _kept_order(shape: tuple[int, ...], inverted: bool, device: torch.device) -> Order:
    with torch.inference_mode(False):  # what it makes may not be saved for backward
        return _order(shape, inverted, device)


def _of_merge(layer: nn.Module) -> str:
    if digest(original_class(layer).__base__, _CODE) not in SPLIT_DIGESTS:
        return "the code of Split, which it calls, is not that of a known normflows release"
    return _of_split(layer)


def _of_split(layer: nn.Module) -> str:
    return "" if layer.mode in MODES else f"its mode is {layer.mode!r}"


_CODE = ("forward", "inverse")
SPLIT_DIGESTS, MERGE_DIGESTS = ("3fe42c9c461e",), ("d1f798b2bb88",)
LAYERS = (
    Layer("normflows", "Squeeze", Squeeze, _CODE, ("12c85d2c7b14",), anything, "images, the faster of two ways"),
    Layer("normflows", "Split", Split, _CODE, SPLIT_DIGESTS, _of_split,
          "every mode; channels are split and merged by PyTorch's views and cat, as in normflows"),
    Layer("normflows", "Merge", Merge, _CODE, MERGE_DIGESTS, _of_merge, "as Split"),
)

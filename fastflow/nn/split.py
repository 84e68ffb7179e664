"""Which part of a sample a coupling transforms (active) and which it hands on unchanged and reads (passive)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """The active and the passive part of samples x [B, C, *spatial]; build one with a named constructor below.

    Channel splits (`halves`, `interleaved`) cut dim 1: the conditioner reads a view of the passive channels. Mask
    splits (`mask`, `checkerboard`) select positions: the conditioner reads x at full width with the active positions
    zero, and what it makes for passive positions is ignored.
    """

    layout: str
    active: str | None = None
    passive: int | None = None
    passive_mask: Tensor | None = None
    parity: int | None = None

    @classmethod
    def halves(cls, active: str = "second", passive: int | None = None) -> Split:
        """Two runs of channels, of which `active` ("first" or "second") is transformed.

        passive: channels of the passive run; by default the first run has ceil(C/2) channels, whichever is active.
        """
        _check_choice("Split.halves", "active", active, ("first", "second"))
        if passive is not None and (isinstance(passive, bool) or not isinstance(passive, int) or passive < 0):
            raise ValueError(f"Split.halves: passive is {passive!r}, expected a number of channels, at least 0")
        return cls("halves", active=active, passive=passive)

    @classmethod
    def interleaved(cls, active: str = "odd") -> Split:
        """Every second channel: those of `active` ("odd": 1, 3, ... or "even": 0, 2, ...) index are transformed."""
        _check_choice("Split.interleaved", "active", active, ("odd", "even"))
        return cls("interleaved", active=active)

    @classmethod
    def mask(cls, mask: Tensor) -> Split:
        """Any set of positions: `mask`, bool [C, *spatial], is True where a sample is passive."""
        if not isinstance(mask, Tensor):
            raise TypeError(f"Split.mask: mask is a {type(mask).__name__}, expected a bool tensor [C, *spatial]")
        if mask.dtype != torch.bool:
            raise TypeError(f"Split.mask: mask has dtype {mask.dtype}, expected torch.bool, True = passive")
        if not 1 <= mask.dim() <= 4:
            raise ValueError(f"Split.mask: mask has shape {tuple(mask.shape)}, expected 1 to 4 dims [C, *spatial]")
        return cls("mask", passive_mask=mask)

    @classmethod
    def checkerboard(cls, shape: tuple[int, ...], parity: int = 0) -> Split:
        """Alternating positions of samples of `shape`, (C, *spatial) or (D,); position (i, j) is passive where
        (i + j) mod 2 differs from `parity`.

        Every channel has the same board; parity 0 transforms the top-left position. For (D,) the features alternate.
        Source: Dinh et al. 2017, "Density estimation using Real NVP", figure 3.
        """
        _check_choice("Split.checkerboard", "parity", parity, (0, 1))
        shape = tuple(shape)
        if not 1 <= len(shape) <= 4:
            raise ValueError(f"Split.checkerboard: shape is {shape}, expected (C, *spatial) or (D,), without the batch")
        board = shape[1:] or shape
        steps = [torch.arange(size).view(-1, *[1] * (len(board) - axis - 1)) for axis, size in enumerate(board)]
        passive = sum(steps) % 2 != parity
        return cls("checkerboard", passive_mask=passive.expand(shape).contiguous(), parity=parity)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless samples of `shape` (C, *spatial) have both parts where this split puts them."""
        if self.passive_mask is None:
            self.active_slice(shape[0])
        elif shape != tuple(self.passive_mask.shape):
            raise ValueError(f"{self}: a sample has shape {shape}, expected {tuple(self.passive_mask.shape)}")

    def active_slice(self, channels: int) -> slice | None:
        """The transformed channels of dim 1 among `channels`; None for a mask split. Raises if there are too few."""
        if self.passive_mask is not None:
            return None
        needed = 2 if self.passive is None else self.passive + 1
        if channels < needed:
            raise ValueError(f"{self}: x has {channels} channel(s), expected at least {needed}; "
                             "Split.checkerboard and Split.mask divide a single channel")  # fmt: skip
        if self.layout == "interleaved":
            return slice(1 if self.active == "odd" else 0, channels, 2)
        if self.active == "first":
            return slice(0, (channels + 1) // 2 if self.passive is None else channels - self.passive)
        return slice((channels + 1) // 2 if self.passive is None else self.passive, channels)

    def active_channels(self, channels: int) -> int:
        """How many channels of scale, and of shift, the conditioner makes for x of `channels` channels."""
        active = self.active_slice(channels)
        if active is None:
            return channels
        return (active.stop - active.start + 1) // 2 if active.step == 2 else active.stop - active.start

    def passive_channels(self, channels: int) -> int:
        """How many channels the conditioner reads for x of `channels` channels."""
        return channels if self.passive_mask is not None else channels - self.active_channels(channels)

    def passive_part(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the conditioner reads: the passive channels of x, a view; for a mask split x with zeros where active.

        mask: the passive mask on x's device, for a mask split (the module's buffer).
        """
        if self.passive_mask is not None:
            self.check(tuple(x.shape[1:]))
            mask = self.passive_mask if mask is None else mask
            if not x.is_contiguous():  # torch.where takes the mask's memory format for x's
                mask = torch.empty_like(x[:1], dtype=torch.bool).copy_(mask)
            return torch.where(mask, x, 0.0)
        channels = x.shape[1]
        active = self.active_slice(channels)
        if self.layout == "interleaved":
            return x[:, 1 - active.start :: 2]
        return x[:, active.stop :] if self.active == "first" else x[:, : active.start]

    def __repr__(self) -> str:
        if self.layout == "halves":
            size = "" if self.passive is None else f", passive={self.passive}"
            return f"Split.halves(active={self.active!r}{size})"
        if self.layout == "interleaved":
            return f"Split.interleaved(active={self.active!r})"
        shape = tuple(self.passive_mask.shape)
        if self.layout == "checkerboard":
            return f"Split.checkerboard(shape={shape}, parity={self.parity})"
        return f"Split.mask(shape={shape}, active={int((~self.passive_mask).sum())})"


def _check_choice(name: str, argument: str, actual: object, expected: tuple) -> None:
    if actual not in expected:
        raise ValueError(f"{name}: {argument} is {actual!r}, expected one of {', '.join(map(repr, expected))}")

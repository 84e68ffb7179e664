"""FrEIA: couplings of one and of two sides.

A block of two sides couples x1 given x2 and then x2 given y1; `rev` undoes the second first. Scales are
exp(clamp f(a)).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastflow.fusion.conditioned import conditioned_coupling
from fastflow.fusion.freia.subnets import asked, checked
from fastflow.fusion.freia.volume_preserving import pixel_preserving, row_preserving
from fastflow.fusion.layer import Arithmetic, Layer, keep
from fastflow.ops._checks import compute_dtype
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap

_CLAMPS = {
    "clamp_atan": lambda u: 0.636 * torch.atan(u),
    "clamp_sigmoid": lambda u: 2. * (torch.sigmoid(u) - 0.5),
}


def clamp_kind(function: Callable) -> str:
    """The kind of scale map of a block's `f_clamp`; empty for a function of the user's."""
    if function is torch.tanh:
        return "clamp_tanh"
    code = getattr(function, "__code__", None)
    return next((kind for kind, known in _CLAMPS.items() if code is not None and _same(code, known.__code__)), "")


def _same(one, other) -> bool:
    parts = ("co_code", "co_consts", "co_names", "co_freevars")
    return all(getattr(one, part) == getattr(other, part) for part in parts)


class Clamped(Arithmetic):
    """What the affine couplings share."""

    def prepare(self) -> None:
        keep(self, "map", ScaleMap(clamp_kind(self.f_clamp), clamp=float(self.clamp)))

    def _packed(self, x: Tensor, made: Tensor, active: slice | None, log_det: Tensor | None, rev: bool,
                ) -> tuple[Tensor, Tensor]:
        """The coupling with parameters [a | t]."""
        return affine_coupling_packed(x, made, packing="scale_shift", scale_map=self._fused_map, active=active,
                                      log_det=log_det, inverse=rev)

    def _couple(self, net: nn.Module, x: Tensor, passive: slice, conditions: list | tuple, active: slice,
                log_det: Tensor | None, rev: bool) -> tuple[Tensor, Tensor]:
        """The coupling with what one subnet makes of the passive channels."""
        coupled = None if conditions else conditioned_coupling(
            (net,), x, passive, active, packing="scale_shift", scale_map=self._fused_map, log_det=log_det, inverse=rev)
        if coupled is not None:
            return coupled
        return self._packed(x, asked(net, x[:, passive], conditions), active, log_det, rev)

    def _conditions(self, c: list | tuple) -> list | tuple:
        return c if self.conditional else ()


class TwoSided(Clamped):
    """GLOWCouplingBlock: one subnet a side, parameters [a | t]."""

    def forward(self, x, c=(), rev=False, jac=True):
        x, c, log_det = checked(self, x[0], self.channels), self._conditions(c), None
        first = self.split_len1
        parts = slice(0, first), slice(first, self.channels)
        for side in (2, 1) if rev else (1, 2):
            active, passive = parts if side == 1 else parts[::-1]
            x, log_det = self._of_side(side, x, passive, c, active, log_det, rev)
        return (x,), log_det

    def _of_side(self, side: int, *call) -> tuple[Tensor, Tensor]:
        return self._couple(self.subnet2 if side == 1 else self.subnet1, *call)


class Separate(TwoSided):
    """RNVPCouplingBlock: a subnet for the scales and one for the shifts a side."""

    def _of_side(self, side, x, passive, conditions, active, log_det, rev):
        nets = (self.subnet_s2, self.subnet_t2) if side == 1 else (self.subnet_s1, self.subnet_t1)
        coupled = None if conditions else conditioned_coupling(
            nets, x, passive, active, packing=None, scale_map=self._fused_map, log_det=log_det, inverse=rev)
        if coupled is not None:
            return coupled
        scale, shift = (asked(net, x[:, passive], conditions) for net in nets)
        return affine_coupling(x, scale, shift, scale_map=self._fused_map, active=active, log_det=log_det, inverse=rev)


class VolumePreserving(Clamped):
    """GINCouplingBlock: the mean over the channels is taken from each log scale; log_det is the number 0."""

    def forward(self, x, c=(), rev=False, jac=True):
        (x1, x2), c = x[0].split((self.split_len1, self.split_len2), 1), self._conditions(c)
        if rev:
            x2 = self._preserving(x2, asked(self.subnet1, x1, c), rev)
        x1 = self._preserving(x1, asked(self.subnet2, x2, c), rev)
        if not rev:
            x2 = self._preserving(x2, asked(self.subnet1, x1, c), rev)
        return (torch.cat((x1, x2), 1),), 0.0

    def _preserving(self, x: Tensor, made: Tensor, rev: bool) -> Tensor:
        preserving = row_preserving if x.dim() == 2 else pixel_preserving
        return preserving(x, made.to(compute_dtype(x)), self._fused_map, rev)


class OneSided(Clamped):
    """AffineCouplingOneSided: x2 given x1."""

    def forward(self, x, c=(), rev=False, jac=True):
        x, c, first = checked(self, x[0], self.channels), self._conditions(c), self.split_len1
        x, log_det = self._couple(self.subnet, x, slice(0, first), c, slice(first, self.channels), None, rev)
        return (x,), log_det


class OfConditions(Clamped):
    """ConditionalAffineTransform: all of x given the conditions."""

    def forward(self, x, c=(), rev=False, jac=True):
        made = self.subnet(torch.cat(c, 1) if len(c) > 1 else c[0])
        x, log_det = self._packed(checked(self, x[0], self.channels), made, None, None, rev)
        return (x,), log_det


def _empty_part(block: nn.Module) -> str:
    return "" if block.split_len1 and block.split_len2 else "one of its parts is empty"


def _unknown_clamp(block: nn.Module) -> str:
    if not clamp_kind(block.f_clamp):
        return "its clamp_activation is a function of your own"
    return "" if block.clamp > 0 else f"its clamp is {block.clamp}, expected a number > 0"


def _of_block(block: nn.Module) -> str:
    return _unknown_clamp(block) or _empty_part(block)


def _as_fast(block: nn.Module) -> str:
    return "it is two additions and a concatenation, for which PyTorch's operations are as fast"


_TWO, _ONE = ("forward", "_coupling1", "_coupling2"), ("forward",)
_CLAMPED = "clamp_activation ATAN, TANH and SIGMOID, conditions"
_SERVED = f"{_CLAMPED}, any split_len"
LAYERS = (
    Layer("FrEIA", "GLOWCouplingBlock", TwoSided, _TWO, ("f7db57667082",), _of_block, _SERVED),
    Layer("FrEIA", "RNVPCouplingBlock", Separate, _TWO, ("b559372f222d",), _of_block, _SERVED),
    Layer("FrEIA", "GINCouplingBlock", VolumePreserving, _TWO, ("bd1116153c0a", "37cf919b6ad5"), _of_block, _SERVED),
    Layer("FrEIA", "AffineCouplingOneSided", OneSided, _ONE, ("3be1542c9d93",), _of_block, _SERVED),
    Layer("FrEIA", "ConditionalAffineTransform", OfConditions, _ONE, ("e08a31577bd1",), _unknown_clamp, _CLAMPED),
    Layer("FrEIA", "NICECouplingBlock", Arithmetic, _TWO, ("9898f6c3c75b",), _as_fast, "left: PyTorch is as fast"),
)

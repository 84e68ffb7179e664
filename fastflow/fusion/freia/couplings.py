"""FrEIA: two-sided couplings.

A block couples x1 given x2 and then x2 given y1; `rev` undoes the second first. Scales are exp(clamp f(a)).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastflow.fusion.couplings import conditioned, fork
from fastflow.fusion.layer import Arithmetic, Layer, keep
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap

_EXP, _ADDITIVE = ScaleMap("exp"), ScaleMap("additive")
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


class TwoSided(Arithmetic):
    """GLOWCouplingBlock: one subnet a side, parameters [a | t]."""

    additive = False

    def prepare(self) -> None:
        keep(self, "map", ScaleMap(clamp_kind(self.f_clamp), clamp=float(self.clamp)))

    def forward(self, x, c=(), rev=False, jac=True):
        (x,), log_det, first = x, None, self.split_len1
        parts = slice(0, first), slice(first, x.shape[1])
        for side in (2, 1) if rev else (1, 2):
            active, passive = parts if side == 1 else parts[::-1]
            x, given = fork(x, passive, alone=not self.additive)
            if self.conditional:
                given = torch.cat([given, *c], 1)
            x, log_det = self._couple(side, x, given, active, log_det, rev)
        return (x,), log_det

    def _couple(self, side: int, x: Tensor, given: Tensor, active: slice, log_det: Tensor | None, rev: bool,
                ) -> tuple[Tensor, Tensor]:
        made = conditioned(self.subnet2 if side == 1 else self.subnet1, given)
        return affine_coupling_packed(x, made, packing="scale_shift", scale_map=self._fused_map, active=active,
                                      log_det=log_det, inverse=rev)


class Separate(TwoSided):
    """RNVPCouplingBlock: a subnet for the scales and one for the shifts a side."""

    def _couple(self, side, x, given, active, log_det, rev):
        scale, shift = (self.subnet_s2, self.subnet_t2) if side == 1 else (self.subnet_s1, self.subnet_t1)
        return affine_coupling(x, conditioned(scale, given), conditioned(shift, given), scale_map=self._fused_map,
                               active=active, log_det=log_det, inverse=rev)


class VolumePreserving(TwoSided):
    """GINCouplingBlock: the mean over the channels is taken from each log scale; log_det is the number 0."""

    def forward(self, x, c=(), rev=False, jac=True):
        return super().forward(x, c, rev, jac)[0], 0.0

    def _couple(self, side, x, given, active, log_det, rev):
        scale, shift = conditioned(self.subnet2 if side == 1 else self.subnet1, given).chunk(2, 1)
        scale = self.clamp * self.f_clamp(scale)
        scale = scale - scale.mean(1, keepdim=True)
        return affine_coupling(x, scale, shift, scale_map=_EXP, active=active, log_det=log_det, inverse=rev)


class Additive(TwoSided):
    """NICECouplingBlock; log_det is the number 0."""

    additive = True

    def prepare(self) -> None:
        """Nothing is to be known."""

    def forward(self, x, c=(), rev=False, jac=True):
        return super().forward(x, c, rev, jac)[0], 0.0

    def _couple(self, side, x, given, active, log_det, rev):
        made = conditioned(self.F if side == 1 else self.G, given)
        return affine_coupling(x, None, made, scale_map=_ADDITIVE, active=active, log_det=log_det, inverse=rev)


def _empty_part(layer: nn.Module) -> str:
    return "one of its parts is empty" if not (layer.split_len1 and layer.split_len2) else ""


def _of_block(layer: nn.Module) -> str:
    if not clamp_kind(layer.f_clamp):
        return "its clamp_activation is a function of your own"
    if not layer.clamp > 0:
        return f"its clamp is {layer.clamp}, expected a number > 0"
    return _empty_part(layer)


_CODE = ("forward", "_coupling1", "_coupling2")
_SERVED = "clamp_activation ATAN, TANH and SIGMOID, conditions, any split_len"
LAYERS = (
    Layer("FrEIA", "GLOWCouplingBlock", TwoSided, _CODE, ("f7db57667082",), _of_block, _SERVED),
    Layer("FrEIA", "RNVPCouplingBlock", Separate, _CODE, ("b559372f222d",), _of_block, _SERVED),
    Layer("FrEIA", "GINCouplingBlock", VolumePreserving, _CODE, ("bd1116153c0a",), _of_block, _SERVED),
    Layer("FrEIA", "NICECouplingBlock", Additive, _CODE, ("9898f6c3c75b",), _empty_part, "conditions, any split_len"),
)

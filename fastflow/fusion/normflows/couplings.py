"""normflows: affine and additive couplings.

    exp           z e^a + t                      inverse  (z - t) e^-a
    sigmoid       z / sigmoid(a + 2) + t                  (z - t) sigmoid(a + 2)
    sigmoid_inv   z sigmoid(a + 2) + t                    (z - t) / sigmoid(a + 2)
    no scale      z + t                                   z - t

`forward` samples (latent to data), `inverse` is the density direction. Parameters are interleaved t a t a.
"""

import torch
from torch import Tensor, nn

from fastflow.fusion.conditioned import conditioned_coupling
from fastflow.fusion.couplings import conditioned
from fastflow.fusion.layer import Arithmetic, Layer, digest
from fastflow.fusion.normflows.reshape import (
    CHECKERBOARDS,
    MERGE_DIGESTS,
    MODES,
    SPLIT_DIGESTS,
    by_colour,
    from_colours,
)
from fastflow.ops.affine_coupling import affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap

_MAPS = {"exp": ScaleMap("exp"), "sigmoid": ScaleMap("inverse_sigmoid", bias=2.0),
         "sigmoid_inv": ScaleMap("sigmoid", bias=2.0)}
_PACKING = "shift_scale_interleaved"


class Coupling(Arithmetic):
    """AffineCoupling, on the two parts that Split made."""

    def forward(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self._fused(z, inverse=False)

    def inverse(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self._fused(z, inverse=True)

    def _fused(self, z: list[Tensor], inverse: bool) -> tuple[list[Tensor], Tensor]:
        passive, active = z
        if not self.scale:
            return super().inverse(z) if inverse else super().forward(z)
        active, log_det = _scaled(self, active, self.param_map(passive), None, inverse)
        return [passive, active], log_det


class CouplingBlock(Arithmetic):
    """AffineCouplingBlock: Split, AffineCoupling and Merge in one pass."""

    replaces = ("flows.0", "flows.1", "flows.2")

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=True)

    def _fused(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        split, coupling, _ = self.flows
        couple = _scaled_half if coupling.scale else _shifted_half
        if split.mode not in CHECKERBOARDS:
            return couple(coupling, z, split.mode == "channel_inv", inverse)
        z, log_det = couple(coupling, by_colour(z, split.mode), False, inverse, apart=True)
        return from_colours(z, split.mode), log_det


def _scaled_half(coupling: nn.Module, z: Tensor, first_moves: bool, inverse: bool, apart: bool = False,
                 ) -> tuple[Tensor, Tensor]:
    """z with half of its channels coupled to the others; `apart`: these go to the conditioner contiguous."""
    first = (z.shape[1] + 1) // 2
    passive, active = slice(0, first), slice(first, z.shape[1])
    if first_moves:
        passive, active = active, passive
    net = coupling.param_map
    coupled = conditioned_coupling((net,), z, passive, active, packing=_PACKING, scale_map=_MAPS[coupling.scale_map],
                                   inverse=inverse)
    if coupled is not None:
        return coupled
    given = z[:, passive]
    made = conditioned(net, given.contiguous() if apart else given)
    return _scaled(coupling, z, made, active, inverse)


def _scaled(coupling: nn.Module, z: Tensor, made: Tensor, active: slice | None, inverse: bool) -> tuple[Tensor, Tensor]:
    shape = z.shape
    if len(shape) > 5:  # more than the kernels know
        z, made = z.flatten(2), made.flatten(2)
    z, log_det = affine_coupling_packed(z, made, packing=_PACKING, scale_map=_MAPS[coupling.scale_map], active=active,
                                        inverse=inverse)
    return z if len(shape) <= 5 else z.view(shape), log_det


def _shifted_half(coupling: nn.Module, z: Tensor, first_moves: bool, inverse: bool, apart: bool = False,
                  ) -> tuple[Tensor, Tensor]:
    """`_scaled_half` without a scale. An addition needs no kernel: PyTorch's own gradients are views."""
    passive, active = z.chunk(2, 1)[::-1] if first_moves else z.chunk(2, 1)
    passive = passive.contiguous() if apart else passive
    made = coupling.param_map(passive)
    active = active - made if inverse else active + made
    return torch.cat([active, passive] if first_moves else [passive, active], 1), z.new_zeros(z.shape[0])


_CODE = ("forward", "inverse")
_COUPLING_DIGESTS = ("aec3390d74be",)


def _of_coupling(layer: nn.Module) -> str:
    if layer.scale and layer.scale_map not in _MAPS:
        return f"its scale map is {layer.scale_map!r}"
    return ""


def _of_block(layer: nn.Module) -> str:
    parts, known = list(layer.flows), (SPLIT_DIGESTS, _COUPLING_DIGESTS, MERGE_DIGESTS)
    names = [type(each).__name__ for each in parts]
    if names != ["Split", "AffineCoupling", "Merge"]:
        return f"its flows are {', '.join(names)}, expected Split, AffineCoupling, Merge"
    if any(digest(type(part), _CODE) not in digests for part, digests in zip(parts, known, strict=True)):
        return "the code of its parts is not that of a known normflows release"
    if parts[0].mode not in MODES or parts[2].mode != parts[0].mode:
        return f"it splits by {parts[0].mode} and merges by {parts[2].mode}"
    return _of_coupling(parts[1])


LAYERS = (
    Layer("normflows", "AffineCouplingBlock", CouplingBlock, _CODE, ("929c47350176",), _of_block,
          "every scale map and split_mode"),
    Layer("normflows", "AffineCoupling", Coupling, _CODE, _COUPLING_DIGESTS, _of_coupling, "every scale map"),
)

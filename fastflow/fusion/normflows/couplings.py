"""normflows: affine and additive couplings.

`forward` samples (latent to data), `inverse` is the density direction. Parameters are interleaved t a t a.
"""

from torch import Tensor, nn

from fastflow.fusion.couplings import conditioned, fork
from fastflow.fusion.layer import Arithmetic, Layer, digest, original_class
from fastflow.fusion.normflows.reshape import CHECKERBOARDS, MERGE_DIGESTS, SPLIT_DIGESTS, by_colour, from_colours
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap

_ADDITIVE = ScaleMap("additive")
_MAPS = {"exp": ScaleMap("exp"), "sigmoid": ScaleMap("inverse_sigmoid", bias=2.0),
         "sigmoid_inv": ScaleMap("sigmoid", bias=2.0)}


def couple(layer: nn.Module, z: Tensor, made: Tensor, active: slice | None, inverse: bool) -> tuple[Tensor, Tensor]:
    """(z, log_det) of an `AffineCoupling` whose conditioner made the parameters; `inverse`: the density direction.

        exp           z e^a + t                      inverse  (z - t) e^-a
        sigmoid       z / sigmoid(a + 2) + t                  (z - t) sigmoid(a + 2)
        sigmoid_inv   z sigmoid(a + 2) + t                    (z - t) / sigmoid(a + 2)
    """
    if not layer.scale:
        return affine_coupling(z, None, made, scale_map=_ADDITIVE, active=active, inverse=inverse)
    return affine_coupling_packed(z, made, packing="shift_scale_interleaved", scale_map=_MAPS[layer.scale_map],
                                  active=active, inverse=inverse)


class Coupling(Arithmetic):
    """AffineCoupling, on the two parts that Split made."""

    def forward(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self._fused(z, inverse=False)

    def inverse(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self._fused(z, inverse=True)

    def _fused(self, z: list[Tensor], inverse: bool) -> tuple[list[Tensor], Tensor]:
        passive, active = z
        if not 2 <= active.dim() <= 5:
            return super().inverse(z) if inverse else super().forward(z)
        active, log_det = couple(self, active, self.param_map(passive), None, inverse)
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
        if not 2 <= z.dim() <= 5:
            return super().inverse(z) if inverse else super().forward(z)
        if split.mode in CHECKERBOARDS:
            return self._by_colour(z, split.mode, coupling, inverse)
        first = (z.shape[1] + 1) // 2
        halves = slice(0, first), slice(first, z.shape[1])
        passive, active = halves if split.mode == "channel" else halves[::-1]
        z, given = fork(z, passive, alone=coupling.scale)
        return couple(coupling, z, conditioned(coupling.param_map, given), active, inverse)

    @staticmethod
    def _by_colour(z: Tensor, mode: str, coupling: nn.Module, inverse: bool) -> tuple[Tensor, Tensor]:
        x = by_colour(z, mode)
        first = x.shape[1] // 2
        x, given = fork(x, slice(0, first), alone=coupling.scale)
        made = coupling.param_map(given.contiguous())  # as Split leaves them
        x, log_det = couple(coupling, x, made, slice(first, 2 * first), inverse)
        return from_colours(x, mode), log_det


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
    if any(digest(original_class(part), _CODE) not in digests for part, digests in zip(parts, known, strict=True)):
        return "the code of its parts is not that of a known normflows release"
    if parts[0].mode not in ("channel", "channel_inv", *CHECKERBOARDS) or parts[2].mode != parts[0].mode:
        return f"it splits by {parts[0].mode} and merges by {parts[2].mode}"
    return _of_coupling(parts[1])


LAYERS = (
    Layer("normflows", "AffineCouplingBlock", CouplingBlock, _CODE, ("929c47350176",), _of_block,
          "every scale map and split_mode"),
    Layer("normflows", "AffineCoupling", Coupling, _CODE, _COUPLING_DIGESTS, _of_coupling, "every scale map"),
)

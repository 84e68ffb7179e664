"""zuko: affine and additive couplings.

Parameters are interleaved t a t a; log s = a / (1 + |a / ln slope|).
"""

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from fastflow.fusion.conditioned import conditioned_coupling
from fastflow.fusion.couplings import conditioned, gathered, keep_split, scattered
from fastflow.fusion.layer import Arithmetic, Layer, keep
from fastflow.fusion.zuko.functional import TRANSFORM_CODE, Conditional, built_by, functional, in_rows, is_known
from fastflow.fusion.zuko.univariate import refuses_univariate, scale_map
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap

_PACKING = "shift_scale_interleaved"


class LazyCoupling(Arithmetic):
    """GeneralCouplingTransform with MonotonicAffineTransform or AdditiveTransform; the True of its mask stay."""

    def prepare(self) -> None:
        keep(self, "functional", functional(Coupling, built_by(self, "CouplingTransform")))
        keep(self, "features", len(self.mask))
        keep(self, "map", scale_map(self.univariate))
        keep_split(self, *(part.nonzero()[:, 0].tolist() for part in (self.mask, ~self.mask)))

    def forward(self, c: Tensor | None = None) -> Transform:
        return self._fused_functional(self, c)


class Coupling(Conditional):
    """CouplingTransform of a fused layer, which knows the indices that the original looks for in each call."""

    @property
    def idx_a(self) -> Tensor:
        return self.layer.mask.nonzero()[:, 0]

    @property
    def idx_b(self) -> Tensor:
        return (~self.layer.mask).nonzero()[:, 0]

    def map_rows(self, x: Tensor, leading: torch.Size, inverse: bool) -> tuple[Tensor, Tensor]:
        layer, (passive, active) = self.layer, self.layer._fused_split
        x, coupled = gathered(layer, x), None
        if self.context is None and layer._fused_map.kind != "additive":
            coupled = conditioned_coupling((layer.hyper,), x, passive, active, packing=_PACKING,
                                           scale_map=layer._fused_map, inverse=inverse)
        if coupled is None:
            made = in_rows(conditioned(layer.hyper, self.with_context(x[:, passive], leading)), leading)
            coupled = _couple(x, made, layer._fused_map, active, inverse)
        return scattered(layer, coupled[0]), coupled[1]


def _couple(x: Tensor, made: Tensor, given: ScaleMap, active: slice, inverse: bool) -> tuple[Tensor, Tensor]:
    if given.kind == "additive":
        return affine_coupling(x, None, made, scale_map=given, active=active, inverse=inverse)
    return affine_coupling_packed(x, made, packing=_PACKING, scale_map=given, active=active, inverse=inverse)


def _refuses(layer: nn.Module) -> str:
    code = (*TRANSFORM_CODE, "split", "merge", "call_and_ladj")
    if not is_known(built_by(layer, "CouplingTransform"), "dd942855399b", code):
        return "its CouplingTransform is not that of a known zuko release"
    return refuses_univariate(layer)


LAYERS = (
    Layer("zuko", "GeneralCouplingTransform", LazyCoupling, ("forward", "meta"), ("3bb0aaea67bd",), _refuses,
          "MonotonicAffineTransform of any slope and AdditiveTransform, any mask, context, any leading dims"),
)

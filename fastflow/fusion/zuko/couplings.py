"""zuko: affine and additive couplings.

Parameters are interleaved t a t a; log s = a / (1 + |a / ln slope|).
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from fastflow.fusion.couplings import conditioned, gathered, keep_split, scattered
from fastflow.fusion.layer import Arithmetic, Layer, keep, original_class
from fastflow.fusion.zuko.functional import (
    TRANSFORM_CODE,
    Bijection,
    check_features,
    functional,
    in_rows,
    is_known,
    out_of_rows,
)
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap

_ADDITIVE = ScaleMap("additive")


class LazyCoupling(Arithmetic):
    """GeneralCouplingTransform with MonotonicAffineTransform or AdditiveTransform; the True of its mask stay."""

    def prepare(self) -> None:
        keep(self, "functional", functional(Coupling, _functional_class(self)))
        keep(self, "map", scale_map(self.univariate))
        keep_split(self, *(part.nonzero()[:, 0].tolist() for part in (self.mask, ~self.mask)))

    def forward(self, c: Tensor | None = None) -> Transform:
        return self._fused_functional(self, c)


class Coupling(Bijection):
    """CouplingTransform of a fused layer, which knows the indices that the original looks for in each call."""

    def __init__(self, layer: LazyCoupling, context: Tensor | None) -> None:
        Transform.__init__(self)
        self.layer, self.context = layer, context

    @property
    def meta(self) -> partial:
        return partial(self.layer.meta, self.context)

    @property
    def idx_a(self) -> Tensor:
        return self.layer.mask.nonzero()[:, 0]

    @property
    def idx_b(self) -> Tensor:
        return (~self.layer.mask).nonzero()[:, 0]

    def map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """(z [..., features], log_det [...]) of x; leading dims of x and the context are broadcast."""
        layer, context, leading = self.layer, self.context, x.shape[:-1]
        check_features("GeneralCouplingTransform", x, layer.mask.shape[0])
        if context is not None:
            leading = torch.broadcast_shapes(leading, context.shape[:-1])
        passive, active = layer._fused_split
        x = gathered(layer, in_rows(x, leading))
        given = x[:, passive]
        if len(leading) != 1:
            given = given.view(*leading, given.shape[1])
        if context is not None:
            given = torch.cat([given, context.expand(*leading, context.shape[-1])], -1)
        made = in_rows(conditioned(layer.hyper, given), leading)
        z, log_det = _couple(x, made, layer._fused_map, active, inverse)
        return out_of_rows(scattered(layer, z), log_det, leading)


def _couple(x: Tensor, made: Tensor, given: ScaleMap, active: slice, inverse: bool) -> tuple[Tensor, Tensor]:
    if given.kind == "additive":
        return affine_coupling(x, None, made, scale_map=given, active=active, inverse=inverse)
    return affine_coupling_packed(x, made, packing="shift_scale_interleaved", scale_map=given, active=active,
                                  inverse=inverse)


def scale_map(univariate: object) -> ScaleMap | None:
    """That of a layer's univariate transform; None for one that is neither affine nor additive."""
    settings = {}
    if isinstance(univariate, partial) and not univariate.args:
        univariate, settings = univariate.func, univariate.keywords
    if is_known(univariate, "f52f06531706") and set(settings) <= {"slope"}:
        slope = settings.get("slope", 1e-3)
        return ScaleMap("soft_clip", clamp=abs(math.log(slope))) if _is_slope(slope) else None
    return _ADDITIVE if is_known(univariate, "bcde9faa58c8") and not settings else None


def _is_slope(slope: object) -> bool:
    return isinstance(slope, float | int) and 0 < slope < math.inf and slope != 1


def univariate_name(layer: nn.Module) -> str:
    """What the layer's univariate transform is, for a reason."""
    return f"its univariate transform is {getattr(layer.univariate, '__name__', layer.univariate)}"


def _functional_class(layer: nn.Module) -> type[Transform] | None:
    return original_class(layer).forward.__globals__.get("CouplingTransform")


def _refuses(layer: nn.Module) -> str:
    if not is_known(_functional_class(layer), "dd942855399b", (*TRANSFORM_CODE, "split", "merge", "call_and_ladj")):
        return "its CouplingTransform is not that of a known zuko release"
    known = scale_map(layer.univariate)
    if known is None:
        return univariate_name(layer)
    expected = [()] if known.kind == "additive" else [(), ()]
    if [tuple(shape) for shape in layer.shapes] != expected:
        return f"its shapes are {layer.shapes}, expected {expected}"
    return ""


LAYERS = (
    Layer("zuko", "GeneralCouplingTransform", LazyCoupling, ("forward", "meta"), ("3bb0aaea67bd",), _refuses,
          "MonotonicAffineTransform of any slope and AdditiveTransform, any mask, context, any leading dims"),
)

"""zuko: the affine map of every feature by itself, by parameters that are made from the context.

Parameters are interleaved t a t a. Where they are of the layer's own, PyTorch's operations are as fast.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from fastflow.fusion.layer import Arithmetic, Layer, keep
from fastflow.fusion.zuko.functional import (
    TRANSFORM_CODE,
    Bijection,
    built_by,
    check_features,
    functional,
    in_rows,
    is_known,
    out_of_rows,
)
from fastflow.fusion.zuko.univariate import refuses_univariate, scale_map
from fastflow.ops.affine_coupling import affine_coupling_packed


class LazyElementWise(Arithmetic):
    """ElementWiseTransform with MonotonicAffineTransform."""

    def prepare(self) -> None:
        keep(self, "functional", functional(ElementWise, built_by(self, "DependentTransform")))
        keep(self, "map", scale_map(self.univariate))

    def forward(self, c: Tensor | None = None) -> Transform:
        return super().forward(c) if c is None else self._fused_functional(self, self.hyper(c))


class ElementWise(Bijection):
    """DependentTransform of a fused layer; `made` [..., 2 features] is what the conditioner made of the context."""

    domain = codomain = constraints.real_vector
    bijective = True
    reinterpreted = 1

    def __init__(self, layer: LazyElementWise, made: Tensor, inverted: bool = False) -> None:
        Transform.__init__(self)
        self.layer, self.made, self.inverted = layer, made, inverted

    @property
    def inv(self) -> Transform:
        return type(self)(self.layer, self.made, not self.inverted)

    @property
    def base(self) -> Transform:
        univariate = self.layer.univariate(self.made[..., 0::2], self.made[..., 1::2])
        return univariate.inv if self.inverted else univariate

    def map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """(z [..., features], log_det [...]) of x; leading dims of x and the context are broadcast."""
        check_features("ElementWiseTransform", x, self.made.shape[-1] // 2)
        leading = torch.broadcast_shapes(x.shape[:-1], self.made.shape[:-1])
        z, log_det = affine_coupling_packed(
            in_rows(x, leading), in_rows(self.made, leading), packing="shift_scale_interleaved",
            scale_map=self.layer._fused_map, inverse=inverse != self.inverted)
        return out_of_rows(z, log_det, leading)


def _refuses(layer: nn.Module) -> str:
    if not is_known(built_by(layer, "DependentTransform"), "89e5b6ec99fb", (*TRANSFORM_CODE, "call_and_ladj", "inv")):
        return "its DependentTransform is not that of a known zuko release"
    reason = refuses_univariate(layer, additive=False)
    if not reason and not hasattr(layer, "hyper"):
        return "its parameters are of its own, for which PyTorch's operations are as fast"
    return reason


LAYERS = (
    Layer("zuko", "ElementWiseTransform", LazyElementWise, ("forward",), ("c9be1f8c0532",), _refuses,
          "MonotonicAffineTransform of any slope, by a context, any leading dims"),
)

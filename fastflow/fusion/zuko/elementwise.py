"""zuko: the affine map of every feature by itself, of parameters of its own or made from the context."""

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from fastflow.fusion.layer import Arithmetic, Layer, keep, original_class
from fastflow.fusion.zuko.couplings import scale_map, univariate_name
from fastflow.fusion.zuko.functional import (
    TRANSFORM_CODE,
    Bijection,
    check_features,
    functional,
    in_rows,
    is_known,
    out_of_rows,
)
from fastflow.ops.affine_coupling import affine_coupling_packed
from fastflow.ops.elementwise_affine import elementwise_affine


class LazyElementWise(Arithmetic):
    """ElementWiseTransform with MonotonicAffineTransform."""

    def prepare(self) -> None:
        keep(self, "functional", functional(ElementWise, _functional_class(self)))
        keep(self, "map", scale_map(self.univariate))

    def forward(self, c: Tensor | None = None) -> Transform:
        return self._fused_functional(self, None if c is None else self.hyper(c))


class ElementWise(Bijection):
    """DependentTransform of a fused layer; `made` [..., 2 features] is what the conditioner made of the context."""

    domain = codomain = constraints.real_vector
    bijective = True
    reinterpreted = 1

    def __init__(self, layer: LazyElementWise, made: Tensor | None, inverted: bool = False) -> None:
        Transform.__init__(self)
        self.layer, self.made, self.inverted = layer, made, inverted

    @property
    def inv(self) -> Transform:
        return type(self)(self.layer, self.made, not self.inverted)

    @property
    def base(self) -> Transform:
        return self._univariate().inv if self.inverted else self._univariate()

    def _univariate(self) -> Transform:
        if self.made is None:
            return self.layer.univariate(*self.layer.phi)
        return self.layer.univariate(*self.made.unflatten(-1, (self.made.shape[-1] // 2, 2)).unbind(-1))

    def map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """(z [..., features], log_det [...]) of x; leading dims of x and the context are broadcast."""
        inverse, made, leading = inverse != self.inverted, self.made, x.shape[:-1]
        if made is None:
            own = self._univariate()
            check_features("ElementWiseTransform", x, own.shift.shape[0])
            z, log_det = elementwise_affine(in_rows(x, leading), own.shift, own.log_scale, inverse=inverse)
        else:
            check_features("ElementWiseTransform", x, made.shape[-1] // 2)
            leading = torch.broadcast_shapes(leading, made.shape[:-1])
            z, log_det = affine_coupling_packed(
                in_rows(x, leading), in_rows(made, leading), packing="shift_scale_interleaved",
                scale_map=self.layer._fused_map, inverse=inverse)
        return out_of_rows(z, log_det, leading)


def _functional_class(layer: nn.Module) -> type[Transform] | None:
    return original_class(layer).forward.__globals__.get("DependentTransform")


def _refuses(layer: nn.Module) -> str:
    if not is_known(_functional_class(layer), "89e5b6ec99fb", (*TRANSFORM_CODE, "call_and_ladj", "inv")):
        return "its DependentTransform is not that of a known zuko release"
    known = scale_map(layer.univariate)
    if known is None or known.kind == "additive":
        return univariate_name(layer)
    if [tuple(shape) for shape in layer.shapes] != [(), ()]:
        return f"its shapes are {layer.shapes}, expected [(), ()]"
    return ""


LAYERS = (
    Layer("zuko", "ElementWiseTransform", LazyElementWise, ("forward",), ("c9be1f8c0532",), _refuses,
          "MonotonicAffineTransform of any slope, context, any leading dims"),
)

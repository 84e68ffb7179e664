"""zuko: affine and additive couplings.

A lazy layer builds a functional transform in each call; a fused one builds a subclass of the same functional transform.
Parameters are interleaved t a t a; log s = a / (1 + |a / ln slope|).
"""

import inspect
import math
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from fastflow.fusion.couplings import conditioned, fork, gathered, keep_split, scattered
from fastflow.fusion.layer import Arithmetic, Layer, digest, keep, original_class
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap

_ADDITIVE = ScaleMap("additive")


class Coupling(Arithmetic):
    """GeneralCouplingTransform with MonotonicAffineTransform or AdditiveTransform; the True of its mask stay."""

    def prepare(self) -> None:
        keep(self, "map", _scale_map(self.univariate))
        keep_split(self, *(part.nonzero()[:, 0].tolist() for part in (self.mask, ~self.mask)))

    def forward(self, c: Tensor | None = None) -> Transform:
        return _fused_transform(original_class(self).forward.__globals__["CouplingTransform"])(self, c)


@cache
def _fused_transform(base: type[Transform]) -> type[Transform]:
    class CouplingTransform(base):
        def __init__(self, layer: nn.Module, context: Tensor | None) -> None:
            Transform.__init__(self)
            self.layer, self.context, self.meta = layer, context, partial(layer.meta, context)

        @property
        def idx_a(self) -> Tensor:
            return self.layer.mask.nonzero()[:, 0]

        @property
        def idx_b(self) -> Tensor:
            return (~self.layer.mask).nonzero()[:, 0]

        @property
        def inv(self) -> Transform:
            return _Inverse(self)

        def _call(self, x: Tensor) -> Tensor:
            return self.couple(x, inverse=False)[0]

        def _inverse(self, y: Tensor) -> Tensor:
            return self.couple(y, inverse=True)[0]

        def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.couple(x, inverse=False)

        def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
            return self.call_and_ladj(x)[1]

        def couple(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
            """x [..., features], the context's leading dims broadcast against its own."""
            layer = self.layer
            if self.context is not None:
                leading = torch.broadcast_shapes(x.shape[:-1], self.context.shape[:-1])
                x = x.expand(*leading, x.shape[-1])
            rows = x.reshape(-1, x.shape[-1])
            context = None if self.context is None else self.context.expand(*leading, -1).reshape(len(rows), -1)
            passive, active = layer._fused_split
            rows, given = fork(gathered(layer, rows), passive, alone=layer._fused_map.kind != "additive")
            if context is not None:
                given = torch.cat([given, context], 1)
            z, log_det = _couple(rows, conditioned(layer.hyper, given), layer._fused_map, active, inverse)
            z = scattered(layer, z)
            return z.view(x.shape), log_det.view(x.shape[:-1])

    return CouplingTransform


class _Inverse(Transform):
    """Both the point and its log-determinant from one evaluation of the conditioner."""

    bijective = True

    def __init__(self, forward: Transform) -> None:
        super().__init__()
        self.forward = forward
        self.domain, self.codomain = forward.codomain, forward.domain

    @property
    def inv(self) -> Transform:
        return self.forward

    def _call(self, y: Tensor) -> Tensor:
        return self.forward.couple(y, inverse=True)[0]

    def _inverse(self, x: Tensor) -> Tensor:
        return self.forward.couple(x, inverse=False)[0]

    def call_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward.couple(y, inverse=True)

    def log_abs_det_jacobian(self, y: Tensor, x: Tensor) -> Tensor:
        return self.call_and_ladj(y)[1]


def _couple(x: Tensor, made: Tensor, scale_map: ScaleMap, active: slice | None, inverse: bool) -> tuple[Tensor, Tensor]:
    if scale_map.kind == "additive":
        return affine_coupling(x, None, made, scale_map=scale_map, active=active, inverse=inverse)
    return affine_coupling_packed(x, made, packing="shift_scale_interleaved", scale_map=scale_map, active=active,
                                  inverse=inverse)


_AFFINE_CODE, _AFFINE_DIGESTS = ("__init__", "_call", "_inverse", "log_abs_det_jacobian"), ("f52f06531706",)
_ADDITIVE_DIGESTS = ("bcde9faa58c8",)


def _scale_map(univariate: object) -> ScaleMap | None:
    """None for a univariate transform that is neither affine nor additive."""
    settings = {}
    if isinstance(univariate, partial) and not univariate.args and set(univariate.keywords) <= {"slope"}:
        univariate, settings = univariate.func, univariate.keywords
    if not inspect.isclass(univariate):
        return None
    code = digest(univariate, _AFFINE_CODE)
    if code in _AFFINE_DIGESTS:
        return ScaleMap("soft_clip", clamp=-math.log(settings.get("slope", 1e-3)))
    return _ADDITIVE if code in _ADDITIVE_DIGESTS and not settings else None


def _of_coupling(layer: nn.Module) -> str:
    if _scale_map(layer.univariate) is None:
        return f"its univariate transform is {getattr(layer.univariate, '__name__', layer.univariate)}"
    expected = [()] if _scale_map(layer.univariate).kind == "additive" else [(), ()]
    if [tuple(shape) for shape in layer.shapes] != expected:
        return f"its shapes are {layer.shapes}, expected {expected}"
    return ""


LAYERS = (
    Layer("zuko", "GeneralCouplingTransform", Coupling, ("forward", "meta"), ("3bb0aaea67bd",), _of_coupling,
          "MonotonicAffineTransform and AdditiveTransform, any mask, context, any leading dims"),
)

"""What a fused lazy layer builds in each call: zuko's functional transform, its arithmetic overridden.

The class is made like that of a fused layer, of a mixin and zuko's own class, so that `isinstance`, `repr`, domains,
shapes and caches are the original's.
"""

import copyreg
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.distributions.transforms import Transform, _InverseTransform

from fastflow.fusion.layer import digest, original_class


class _Made(type):
    """The metaclass of what `functional` makes. By it pickle finds such a class again."""


@cache
def functional(mixin: type, original: type) -> type:
    """A subclass of a functional class of zuko with the methods of the mixin in front."""
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    return _Made(original.__name__, (mixin, original), names)


copyreg.pickle(_Made, lambda made: (functional, made.__bases__))


def built_by(layer: nn.Module, name: str) -> type | None:
    """The functional class of this name that the layer's own forward builds."""
    return original_class(layer).forward.__globals__.get(name)


TRANSFORM_CODE = ("__init__", "_call", "_inverse", "log_abs_det_jacobian")


def is_known(cls: object, code: str, methods: tuple[str, ...] = TRANSFORM_CODE) -> bool:
    """Whether cls is a functional class of this code."""
    return isinstance(cls, type) and digest(cls, methods) == code


class Bijection:
    """A functional transform that gets both the point and its log-determinant, of either direction, from `map`."""

    @property
    def inv(self) -> Transform:
        if self._inv is None:
            self._inv = Inverse(self)
        return self._inv

    def _call(self, x: Tensor) -> Tensor:
        return self.map(x, inverse=False)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.map(y, inverse=True)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.map(x, inverse=False)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.map(x, inverse=False)[1]


class Inverse(_InverseTransform):
    """The inverse of a `Bijection`: what the original finds in two passes it has in one."""

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._inv.map(x, inverse=True)


class Conditional(Bijection):
    """The transform that a fused layer builds for a context. Leading dims of x and the context are broadcast."""

    def __init__(self, layer: nn.Module, context: Tensor | None) -> None:
        Transform.__init__(self)
        self.layer, self.context = layer, context

    @property
    def meta(self) -> partial:
        return partial(self.layer.meta, self.context)

    def map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """(z [..., features], log_det [...]) of x."""
        check_features(type(self.layer).__name__, x, self.layer._fused_features)
        leading = x.shape[:-1]
        if self.context is not None:
            leading = torch.broadcast_shapes(leading, self.context.shape[:-1])
        return out_of_rows(*self.map_rows(in_rows(x, leading), leading, inverse), leading)

    def map_rows(self, x: Tensor, leading: torch.Size, inverse: bool) -> tuple[Tensor, Tensor]:
        """(z, log_det [rows]) of x [rows, features]."""
        raise NotImplementedError

    def with_context(self, x: Tensor, leading: torch.Size) -> Tensor:
        """What the layer's network reads: x [rows, n] as [*leading, n], the context behind it."""
        if len(leading) != 1:
            x = x.view(*leading, x.shape[1])
        return x if self.context is None else torch.cat([x, self.context.expand(*leading, -1)], -1)


def in_rows(x: Tensor, leading: torch.Size) -> Tensor:
    """x [..., n] as [rows, n], broadcast to the leading dims."""
    if len(leading) == 1 and x.shape[:-1] == leading:
        return x
    return x.expand(*leading, x.shape[-1]).reshape(-1, x.shape[-1])


def out_of_rows(z: Tensor, log_det: Tensor, leading: torch.Size) -> tuple[Tensor, Tensor]:
    """z [..., n] and log_det [...] of what was computed in rows."""
    return (z, log_det) if len(leading) == 1 else (z.view(*leading, z.shape[1]), log_det.view(leading))


def check_features(layer: str, x: Tensor, features: int) -> None:
    """Raises ValueError unless x is [..., features]."""
    if x.dim() == 0 or x.shape[-1] != features:
        raise ValueError(f"{layer}: x has shape {tuple(x.shape)}, expected (..., {features})")

"""zuko: masked affine and additive autoregressive layers. Parameters are interleaved t a t a."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from fastflow.fusion.autoregressive import Autoregressive
from fastflow.fusion.layer import Layer, keep
from fastflow.fusion.masked_network import Network, Unsupported, expect
from fastflow.fusion.univariate import Univariate
from fastflow.fusion.zuko.functional import TRANSFORM_CODE, Conditional, built_by, functional, in_rows, is_known
from fastflow.fusion.zuko.univariate import refuses_univariate, scale_map


class LazyMaskedAutoregressive(Autoregressive):
    """MaskedAutoregressiveTransform with MonotonicAffineTransform or AdditiveTransform."""

    def prepare(self) -> None:
        features = self.hyper.out_features // self.total
        keep(self, "functional", functional(MaskedAutoregressive, built_by(self, "AutoregressiveTransform")))
        keep(self, "features", features)
        width = self.hyper.in_features - features
        context = next(self.hyper.parameters()).new_zeros(1, width) if width else None
        self._keep_plan(Univariate(scale_map(self.univariate)), features, self.passes, context)

    def forward(self, c: Tensor | None = None) -> Transform:
        return self._fused_functional(self, c)

    def _condition(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.hyper(x if context is None else torch.cat([x, context], -1))

    def _inverted(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, log_det = super()._inverted(z, context)
        if self._fused_plan is None:  # then passes may be too few, and the original's log_det is that of the x it found
            log_det = -self._fused_univariate(x, self._condition(x, context))[1]
        return x, log_det

    def _network(self, context: Tensor | None) -> Network:
        expect(self.hyper)
        features, network, value = self._fused_features, Network(), 0
        if self.hyper.in_features != features + (0 if context is None else context.shape[1]):
            raise Unsupported("its context is another than its network's")
        for index, part in enumerate(self.hyper):
            if type(part).__name__ == "Residual":
                expect(part, _RESIDUAL)
                value = network.sum(_sequence(network, value, part), value)
            elif index:
                value = _sequence(network, value, [part])
            else:
                value = network.linear(value, part, _of_context(part, context, features), features)
        return network


def _of_context(linear: nn.Module, context: Tensor | None, features: int) -> Tensor | None:
    """What the first layer adds for the context, which lies behind the features."""
    if context is None:
        return None
    return nn.functional.linear(context, linear.mask[:, features:] * linear.weight[:, features:])


def _sequence(network: Network, value: int, parts: Iterable[nn.Module]) -> int:
    for part in parts:
        value = network.linear(value, part) if isinstance(part, nn.Linear) else network.activation(value, part)
    return value


class MaskedAutoregressive(Conditional):
    """AutoregressiveTransform of a fused layer."""

    @property
    def passes(self) -> int:
        return self.layer.passes

    def map_rows(self, x: Tensor, leading: torch.Size, inverse: bool) -> tuple[Tensor, Tensor]:
        layer, context = self.layer, self.context
        if not inverse:
            return layer._fused_univariate(x, in_rows(layer.hyper(self.with_context(x, leading)), leading))
        return layer._inverted(x, None if context is None else in_rows(context, leading))


def _refuses(layer: nn.Module) -> str:
    if not is_known(built_by(layer, "AutoregressiveTransform"), _FUNCTIONAL, (*TRANSFORM_CODE, "call_and_ladj")):
        return "its AutoregressiveTransform is not that of a known zuko release"
    network = type(layer.hyper)
    if network.__name__ != "MaskedMLP" or network.forward is not nn.Sequential.forward:
        return f"its network is a {network.__name__}"
    return refuses_univariate(layer)


_FUNCTIONAL, _RESIDUAL = "8896e843e2fe", ("3bb1ab21892d",)
LAYERS = (
    Layer("zuko", "MaskedAutoregressiveTransform", LazyMaskedAutoregressive, ("forward", "meta"), ("508427e3f795",),
          _refuses, "MonotonicAffineTransform of any slope and AdditiveTransform, any passes, order, adjacency, "
          "context and leading dims; the inverse by stages with elementwise activations of PyTorch"),
)

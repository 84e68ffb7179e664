"""nflows: the affine masked autoregressive layer."""

from torch import Tensor, nn

from fastflow.fusion.autoregressive import Autoregressive
from fastflow.fusion.layer import Layer
from fastflow.fusion.masked_network import Network, expect
from fastflow.fusion.univariate import Univariate
from fastflow.ops.scale_map import ScaleMap


class MaskedAffine(Autoregressive):
    """MaskedAffineAutoregressiveTransform: c = softplus(a) + 1e-3; parameters a t a t."""

    def prepare(self) -> None:
        self._keep_plan(Univariate(ScaleMap("softplus", eps=self._epsilon), shift=1), self.features, self.features)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._fused_univariate(inputs, self.autoregressive_net(inputs, context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._inverted(inputs, context)

    def _condition(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.autoregressive_net(x, context)

    def _network(self, context: Tensor | None) -> Network:
        network, made = Network(), self.autoregressive_net
        expect(made, _MADE)
        added = None if context is None else made.activation(made.context_layer(context))
        value = network.linear(0, made.initial_layer, added)
        if not made.use_residual_blocks:
            value = network.activation(value, made.activation)
        for block in made.blocks:
            value = (_residual if made.use_residual_blocks else _feedforward)(network, value, block, context)
        network.linear(value, made.final_layer)
        return network


def _residual(network: Network, value: int, block: nn.Module, context: Tensor | None) -> int:
    expect(block, _RESIDUAL)
    added, inner = None if context is None else block.context_layer(context), value
    for index, linear in enumerate(block.linear_layers):
        if block.use_batch_norm:
            inner = network.batch_norm(inner, block.batch_norm_layers[index])
        inner = network.activation(inner, block.activation)
        if index:
            inner = network.dropout(inner, block.dropout)
        inner = network.linear(inner, linear, None if index else added)
    return network.sum(inner, value)


def _feedforward(network: Network, value: int, block: nn.Module, context: Tensor | None) -> int:
    expect(block, _FEEDFORWARD)
    if block.batch_norm:
        value = network.batch_norm(value, block.batch_norm)
    value = network.activation(network.linear(value, block.linear), block.activation)
    return network.dropout(value, block.dropout)


def _refuses(layer: nn.Module) -> str:
    return "" if layer._epsilon > 0 else f"its _epsilon is {layer._epsilon}, expected a number > 0"


_MADE, _RESIDUAL, _FEEDFORWARD = ("a4a7f3236f78",), ("7e4ffba8e121",), ("7fa089b7c88e",)
_CODE = ("forward", "inverse", "_elementwise_forward", "_elementwise_inverse", "_unconstrained_scale_and_shift")
LAYERS = (
    Layer("nflows", "MaskedAffineAutoregressiveTransform", MaskedAffine, _CODE, ("15b0988f92e2", "f1ab8fbf6c81"),
          _refuses, "any conditioner; the inverse of MADE by stages: any blocks, masks and context, elementwise "
          "activations of PyTorch, no dropout or batch norm in training"),
)

"""normflows: the affine masked autoregressive layer. `forward` samples with one pass, `inverse` is the long one."""

from torch import Tensor, nn

from fastflow.fusion.autoregressive import Autoregressive
from fastflow.fusion.layer import Layer, anything
from fastflow.fusion.masked_network import Network, Unsupported, expect
from fastflow.fusion.univariate import Univariate
from fastflow.ops.scale_map import ScaleMap

_UNIVARIATE = Univariate(ScaleMap("sigmoid", bias=2.0, eps=1e-3), shift=1)


class MaskedAffine(Autoregressive):
    """MaskedAffineAutoregressive: c = sigmoid(a + 2) + 1e-3; parameters a t a t."""

    def prepare(self) -> None:
        self._keep_plan(_UNIVARIATE, self.features, self.features)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _UNIVARIATE(inputs, self.autoregressive_net(inputs, context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._inverted(inputs, context)

    def _condition(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.autoregressive_net(x, context)

    def _network(self, context: Tensor | None) -> Network:
        network, made = Network(), self.autoregressive_net
        expect(made, _MADE)
        if type(made.preprocessing) is not nn.Identity:
            raise Unsupported("its inputs are preprocessed")
        value = network.linear(0, made.initial_layer, None if context is None else made.context_layer(context))
        for block in made.blocks:
            read = _residual if hasattr(block, "linear_layers") else _feedforward
            value = read(network, value, block, context)
        network.linear(value, made.final_layer)
        return network


def _residual(network: Network, value: int, block: nn.Module, context: Tensor | None) -> int:
    expect(block, _RESIDUAL)
    inner = value
    for index, linear in enumerate(block.linear_layers):
        if block.use_batch_norm:
            inner = network.batch_norm(inner, block.batch_norm_layers[index])
        inner = network.activation(inner, block.activation)
        if index:
            inner = network.dropout(inner, block.dropout)
        inner = network.linear(inner, linear)
    if hasattr(block, "context_layer"):
        inner = network.scale(inner, None if context is None else block.context_layer(context).sigmoid())
    return network.sum(inner, value)


def _feedforward(network: Network, value: int, block: nn.Module, context: Tensor | None) -> int:
    expect(block, _FEEDFORWARD)
    if context is not None:
        raise NotImplementedError
    if block.batch_norm:
        value = network.batch_norm(value, block.batch_norm)
    value = network.activation(network.linear(value, block.linear), block.activation)
    return network.dropout(value, block.dropout)


_MADE, _RESIDUAL, _FEEDFORWARD = ("33f8be241194",), ("18607415da8e",), ("f4039c7a5089",)
_CODE = ("forward", "inverse", "_elementwise_forward", "_elementwise_inverse", "_unconstrained_scale_and_shift")
LAYERS = (
    Layer("normflows", "MaskedAffineAutoregressive", MaskedAffine, _CODE, ("4de7eed0b630",), anything,
          "any conditioner; the inverse of MADE by stages: any blocks, masks and context, elementwise activations of "
          "PyTorch, no dropout or batch norm in training"),
)

"""The affine autoregressive layer on a MADE, of which nflows and normflows have one of the same names."""

from torch import Tensor, nn

from fastflow.fusion.autoregressive import Autoregressive
from fastflow.fusion.masked_network import Network, expect

CODE = ("forward", "inverse", "_elementwise_forward", "_elementwise_inverse", "_unconstrained_scale_and_shift")
COVERS = ("any conditioner; the inverse of MADE by stages: any blocks, masks and context, elementwise activations of "
          "PyTorch, no dropout or batch norm in training")


class AffineMADE(Autoregressive):
    """A library's own are `prepare`, the digests, and how the context enters: `_first` and `_branch`."""

    network_digests: tuple[str, ...]  # of the forward of its MADE, and of the two kinds of blocks
    residual_digests: tuple[str, ...]
    feedforward_digests: tuple[str, ...]

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._fused_univariate(inputs, self._condition(inputs, context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._inverted(inputs, context)

    def _condition(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.autoregressive_net(x, context)

    def _network(self, context: Tensor | None) -> Network:
        network, made = Network(), self.autoregressive_net
        expect(made, self.network_digests)
        value = self._first(network, made, context)
        for block in made.blocks:
            if hasattr(block, "linear_layers"):
                expect(block, self.residual_digests)
                value = network.sum(self._branch(network, value, block, context), value)
            else:
                expect(block, self.feedforward_digests)
                value = _feedforward(network, value, block)
        network.linear(value, made.final_layer)
        return network

    def _first(self, network: Network, made: nn.Module, context: Tensor | None) -> int:
        """What the first block reads."""
        raise NotImplementedError

    def _branch(self, network: Network, value: int, block: nn.Module, context: Tensor | None) -> int:
        """What a residual block adds to its input."""
        raise NotImplementedError


def branch(network: Network, value: int, block: nn.Module, added: Tensor | None = None) -> int:
    """The two linear layers of a residual block; `added` joins the bias of the first."""
    for index, linear in enumerate(block.linear_layers):
        if block.use_batch_norm:
            value = network.batch_norm(value, block.batch_norm_layers[index])
        value = network.activation(value, block.activation)
        if index:
            value = network.dropout(value, block.dropout)
        value = network.linear(value, linear, None if index else added)
    return value


def _feedforward(network: Network, value: int, block: nn.Module) -> int:
    if block.batch_norm:
        value = network.batch_norm(value, block.batch_norm)
    value = network.activation(network.linear(value, block.linear), block.activation)
    return network.dropout(value, block.dropout)

"""nflows: the affine masked autoregressive layer."""

from torch import Tensor, nn

from fastflow.fusion.layer import Layer
from fastflow.fusion.made import CODE, COVERS, AffineMADE, branch
from fastflow.fusion.masked_network import Network
from fastflow.fusion.univariate import Univariate
from fastflow.ops.scale_map import ScaleMap


class MaskedAffine(AffineMADE):
    """MaskedAffineAutoregressiveTransform: c = softplus(a) + 1e-3; parameters a t a t."""

    network_digests = ("a4a7f3236f78",)
    residual_digests = ("7e4ffba8e121",)
    feedforward_digests = ("7fa089b7c88e",)

    def prepare(self) -> None:
        univariate = Univariate(ScaleMap("softplus", eps=self._epsilon), shift_index=1)
        self._keep_plan(univariate, self.features, self.features)

    def _first(self, network: Network, made: nn.Module, context: Tensor | None) -> int:
        added = None if context is None else made.activation(made.context_layer(context))
        value = network.linear(0, made.initial_layer, added)
        return value if made.use_residual_blocks else network.activation(value, made.activation)

    def _branch(self, network: Network, value: int, block: nn.Module, context: Tensor | None) -> int:
        return branch(network, value, block, None if context is None else block.context_layer(context))


def _refuses(layer: nn.Module) -> str:
    return "" if layer._epsilon > 0 else f"its _epsilon is {layer._epsilon}, expected a number > 0"


LAYERS = (
    Layer("nflows", "MaskedAffineAutoregressiveTransform", MaskedAffine, CODE, ("15b0988f92e2", "f1ab8fbf6c81"),
          _refuses, COVERS),
)

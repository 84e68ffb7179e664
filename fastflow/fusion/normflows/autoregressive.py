"""normflows: the affine masked autoregressive layer. `forward` samples with one pass, `inverse` is the long one."""

from torch import Tensor, nn

from fastflow.fusion.layer import Layer, anything
from fastflow.fusion.made import CODE, COVERS, AffineMADE, branch
from fastflow.fusion.masked_network import Network, Unsupported
from fastflow.fusion.univariate import Univariate
from fastflow.ops.scale_map import ScaleMap

_UNIVARIATE = Univariate(ScaleMap("sigmoid", bias=2.0, eps=1e-3), shift_index=1)


class MaskedAffine(AffineMADE):
    """MaskedAffineAutoregressive: c = sigmoid(a + 2) + 1e-3; parameters a t a t."""

    network_digests = ("33f8be241194",)
    residual_digests = ("18607415da8e",)
    feedforward_digests = ("f4039c7a5089",)

    def prepare(self) -> None:
        self._keep_plan(_UNIVARIATE, self.features, self.features)

    def _first(self, network: Network, made: nn.Module, context: Tensor | None) -> int:
        if type(made.preprocessing) is not nn.Identity:
            raise Unsupported("its inputs are preprocessed")
        if context is not None and not all(hasattr(each, "linear_layers") for each in made.blocks):
            raise Unsupported("its blocks take no context")
        return network.linear(0, made.initial_layer, None if context is None else made.context_layer(context))

    def _branch(self, network: Network, value: int, block: nn.Module, context: Tensor | None) -> int:
        value = branch(network, value, block)
        if not hasattr(block, "context_layer"):
            return value
        return network.scale(value, None if context is None else block.context_layer(context).sigmoid())


LAYERS = (
    Layer("normflows", "MaskedAffineAutoregressive", MaskedAffine, CODE, ("4de7eed0b630",), anything, COVERS),
)

"""zuko: densities of diagonal Gaussians, as the base of a flow and mixed. Samples are the original's."""

import math

from torch import Tensor, nn
from torch.distributions import Distribution

from fastflow.fusion import mixture
from fastflow.fusion.layer import Arithmetic, Layer, keep, original_class
from fastflow.fusion.zuko.functional import functional, in_rows, is_known


class LazyDistribution(Arithmetic):
    """UnconditionalDistribution of a DiagNormal."""

    def prepare(self) -> None:
        keep(self, "functional", functional(DiagNormal, self.f))

    def forward(self, c: Tensor | None = None) -> Distribution:
        return self._fused_functional(*self.args, **self.kwargs)


class DiagNormal:
    """DiagNormal with one event dim, whose scales' logarithms are summed apart from the rows'."""

    def log_prob(self, x: Tensor) -> Tensor:
        normal = self.base_dist
        energy = 0.5 * ((x - normal.loc) / normal.scale).square().sum(-1)
        return -energy - (normal.scale.log().sum(-1) + 0.5 * math.log(2 * math.pi) * normal.loc.shape[-1])


class LazyMixture(Arithmetic):
    """GMM of diagonal or spherical covariances."""

    def prepare(self) -> None:
        keep(self, "functional", functional(Mixture, _mixture_class(self)))

    def forward(self, c: Tensor | None = None) -> Distribution:
        built = super().forward(c)
        return self._fused_functional(built.base, built.logits)


class Mixture:
    """Mixture of DiagNormals: no [..., K, D] is stored. One of its own a row, from a context, is the original's."""

    def log_prob(self, x: Tensor) -> Tensor:
        if len(self.base.batch_shape) != 1:
            return super().log_prob(x)
        normal, leading = self.base.base_dist, x.shape[:-1]
        log_prob = mixture.log_prob(in_rows(x, leading), normal.loc, normal.scale.log(), self.logits.log_softmax(-1))
        return log_prob if len(leading) == 1 else log_prob.view(leading)


def _mixture_class(layer: nn.Module) -> type[Distribution] | None:
    return original_class(layer)._forward_diagonal.__globals__.get("Mixture")


def _refuses_distribution(layer: nn.Module) -> str:
    if not is_known(layer.f, "7ac0f3aa59d5", ("__init__",)):
        return f"its distribution is {getattr(layer.f, '__name__', type(layer.f).__name__)}"
    return "" if layer.kwargs.get("ndims", 1) == 1 and len(layer.args) < 3 else "its ndims is not 1"


def _refuses_mixture(layer: nn.Module) -> str:
    if not is_known(_mixture_class(layer), "4c287c9749e2", ("__init__", "log_prob")):
        return "its Mixture is not that of a known zuko release"
    if layer.covariance_type == "full":
        return "its covariances are full, of which PyTorch's triangular solver is as fast"
    return "its parameters are those of a context" if hasattr(layer, "hyper") else ""


LAYERS = (
    Layer("zuko", "UnconditionalDistribution", LazyDistribution, ("forward", "args", "kwargs"), ("df8fd208f704",),
          _refuses_distribution, "DiagNormal of one event dim"),
    Layer("zuko", "GMM", LazyMixture, ("forward", "_forward_diagonal"), ("d3b8a23411b1",), _refuses_mixture,
          "diagonal and spherical covariances, tied or not, without context"),
)

"""zuko: compositions. Dynamo cannot trace the original, which asserts that a tuple is not empty."""

from torch import Tensor, nn
from torch.distributions import Transform

from fastflow.fusion.layer import Arithmetic, Layer, keep
from fastflow.fusion.zuko.functional import built_by, functional, is_known


class LazyComposed(Arithmetic):
    """LazyComposedTransform."""

    def prepare(self) -> None:
        keep(self, "functional", functional(Composed, built_by(self, "ComposedTransform")))

    def forward(self, c: Tensor | None = None) -> Transform:
        return self._fused_functional(*[each(c) for each in self.transforms])


class Composed:
    """ComposedTransform."""

    def __init__(self, *transforms: Transform) -> None:
        Transform.__init__(self)
        self.transforms, self.domain_dim = transforms, 0
        for each in reversed(transforms):
            least, most = each.domain.event_dim, each.codomain.event_dim
            self.domain_dim = max(least, self.domain_dim + least - most)
        gained = sum([each.codomain.event_dim - each.domain.event_dim for each in transforms])
        self.codomain_dim = self.domain_dim + gained


def _refuses(layer: nn.Module) -> str:
    if not is_known(built_by(layer, "ComposedTransform"), "4c57a9feb0e1", ("__init__",)):
        return "its ComposedTransform is not that of a known zuko release"
    return "" if len(layer.transforms) else "it has no transforms"


LAYERS = (
    Layer("zuko", "LazyComposedTransform", LazyComposed, ("forward",), ("fed3eca6baca",), _refuses,
          "any transforms; so that torch.compile takes the whole model"),
)

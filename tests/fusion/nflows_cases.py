"""nflows' layers in all their options, for the tests of what every fused layer keeps."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from models import Net
from peers import nflows
from torch import Tensor, nn

T = nflows.transforms
ROWS, FEATURES, IMAGE, CONTEXT = 17, 6, (5, 4, 6), 3


class Conditioned(Net):
    """A conditioner that reads its context."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs + CONTEXT, outputs)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(torch.cat([x, context], 1))


def conv(inputs: int, outputs: int) -> nn.Module:
    return Net(inputs, outputs, 8, kernel=3)


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (FEATURES,)
    latent: tuple[int, ...] | None = None  # the shape of z, where it differs
    context: bool = False
    inverts: bool = True  # the original does

    def data(self, rows: int = ROWS, seed: int = 0) -> tuple[Tensor, ...]:
        return self._draw(self.shape, rows, seed)

    def latents(self, rows: int = ROWS, seed: int = 1) -> tuple[Tensor, ...]:
        return self._draw(self.latent or self.shape, rows, seed)

    def _draw(self, shape: tuple[int, ...], rows: int, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [shape, (CONTEXT,)] if self.context else [shape]
        return tuple(torch.randn(rows, *each, generator=generator, dtype=torch.float64) for each in shapes)


def multiscale(shape: tuple[int, ...], levels: int, split_dim: int = 1) -> nn.Module:
    whole = T.MultiscaleCompositeTransform(levels, split_dim)
    for _ in range(levels):
        features = shape[0]
        shape = whole.add_transform(T.CompositeTransform([T.ActNorm(features), T.RandomPermutation(features)]), shape)
    return whole


def squeezing() -> nn.Module:
    whole = T.MultiscaleCompositeTransform(2)
    hidden = whole.add_transform(T.SqueezeTransform(), (20, 2, 3))
    whole.add_transform(T.OneByOneConvolution(10, identity_init=False), hidden)
    return whole


ALTERNATING, HALVES, MIXED = [1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0]
OF_IMAGES = [-1, 1, 0, 2, 0]
CASES = {
    "affine alternating": Case(lambda: T.AffineCouplingTransform(ALTERNATING, Net)),
    "affine halves": Case(lambda: T.AffineCouplingTransform(HALVES, Net)),
    "affine mixed": Case(lambda: T.AffineCouplingTransform(MIXED, Net)),
    "affine context": Case(lambda: T.AffineCouplingTransform(ALTERNATING, Conditioned), context=True),
    "affine images": Case(lambda: T.AffineCouplingTransform(OF_IMAGES, conv), IMAGE),
    "affine free": Case(lambda: T.AffineCouplingTransform(MIXED, Net, lambda features: T.LULinear(features))),
    "affine free images": Case(lambda: T.AffineCouplingTransform(OF_IMAGES, conv, T.ActNorm), IMAGE),
    "additive": Case(lambda: T.AdditiveCouplingTransform(HALVES, Net)),
    "additive mixed": Case(lambda: T.AdditiveCouplingTransform(MIXED, Net)),
    "additive context": Case(lambda: T.AdditiveCouplingTransform(ALTERNATING, Conditioned), context=True),
    "additive images": Case(lambda: T.AdditiveCouplingTransform(OF_IMAGES, conv), IMAGE),
    "additive free": Case(lambda: T.AdditiveCouplingTransform(HALVES, Net, lambda features: T.LULinear(features))),
    "act norm": Case(lambda: T.ActNorm(FEATURES)),
    "act norm images": Case(lambda: T.ActNorm(IMAGE[0]), IMAGE),
    "pointwise": Case(lambda: T.PointwiseAffineTransform(torch.linspace(-1, 1, 6), torch.linspace(0.5, 2, 6))),
    "pointwise scalar": Case(lambda: T.PointwiseAffineTransform(0.5, 1.5)),
    "pointwise images": Case(lambda: T.PointwiseAffineTransform(torch.ones(5, 1, 1), torch.rand(6) + 0.5), IMAGE),
    "lu": Case(lambda: T.LULinear(FEATURES, identity_init=False)),
    "lu single": Case(lambda: T.LULinear(1), (1,)),
    "lu wide": Case(lambda: T.LULinear(70, identity_init=False, eps=0.1), (70,)),
    "dense": Case(lambda: T.NaiveLinear(FEATURES), inverts=False),
    "dense wide": Case(lambda: T.NaiveLinear(70, orthogonal_initialization=False), (70,), inverts=False),
    "convolution": Case(lambda: T.OneByOneConvolution(5, identity_init=False), IMAGE),
    "convolution wide": Case(lambda: T.OneByOneConvolution(70, identity_init=False), (70, 2, 3)),
    "permutation": Case(lambda: T.Permutation(torch.tensor([2, 0, 5, 1, 4, 3]))),
    "permutation random": Case(lambda: T.RandomPermutation(6, dim=3), IMAGE),
    "permutation reverse": Case(lambda: T.ReversePermutation(FEATURES)),
    "permutation reverse images": Case(lambda: T.ReversePermutation(4, dim=2), IMAGE),
    "squeeze": Case(lambda: T.SqueezeTransform(), IMAGE, (20, 2, 3)),
    "multiscale": Case(lambda: multiscale((9,), 3), (9,)),
    "multiscale images": Case(lambda: multiscale(IMAGE, 2, split_dim=3), IMAGE, (5 * 4 * 6,)),
    "multiscale squeezing": Case(squeezing, IMAGE, (120,)),
}
DIRECTIONS = {"forward": lambda layer, *given: layer(*given), "inverse": lambda layer, *given: layer.inverse(*given)}
BOTH = [(name, way) for name, case in CASES.items() for way in DIRECTIONS if way == "forward" or case.inverts]


def inputs(name: str, way: str, rows: int = ROWS) -> tuple[Tensor, ...]:
    """What a direction of a case takes, float64."""
    return CASES[name].data(rows) if way == "forward" else CASES[name].latents(rows)


def started(name: str, seed: int = 0) -> nn.Module:
    """The layer of a case, whose first batch is behind it."""
    torch.manual_seed(seed)
    layer = CASES[name].make()
    with torch.no_grad():
        layer(*(each.float() for each in CASES[name].data(32, 7)))
    return layer

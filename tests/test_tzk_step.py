"""TzK's flow steps from public layers: squeeze, mix tiles, un-squeeze, affine, symmetric logarithm."""

import pytest
import torch
from bijections import assert_inverts, assert_log_det

from fastflow.nn import ActNorm, ChannelMix, FlowSequential, Squeeze, SymLog


def steps(side: int, factor: int, count: int, **options) -> FlowSequential:
    """`count` steps on images [1, side, side]; every other one mixes pixels far apart instead of neighbours."""
    generator, layers = torch.Generator().manual_seed(0), []
    for step in range(count):
        interleaved = step % 2 == 1
        square = torch.randn(factor**2, factor**2, generator=generator, dtype=torch.float64)
        layers += [
            Squeeze(factor=factor, interleaved=interleaved),
            ChannelMix(factor**2, "plu", torch.linalg.qr(square).Q.float()),
            Squeeze(factor=factor, interleaved=interleaved, undo=True),
            ActNorm(1),
            SymLog(),
        ]
    return FlowSequential(layers, (1, side, side), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_inverts(dtype):
    flow = steps(32, 4, 10).to(dtype)
    x = torch.rand(8, 1, 32, 32, dtype=dtype)
    flow.initialize(x)
    assert flow(x)[0].shape == x.shape
    assert_inverts(flow, x)


def test_log_det_is_the_jacobian():
    flow = steps(8, 4, 4).double()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    flow.initialize(torch.rand(16, 1, 8, 8, dtype=torch.float64))
    assert_log_det(flow, x)


@pytest.mark.parametrize(("side", "factor", "reached"), [
    (16, 4, (16, 256, 256)),
    (32, 8, (64, 1024, 1024)),
    (32, 4, (16, 256, 256)),  # 4 x 4 < 32: never all of them, a quarter stays apart
])  # fmt: skip
def test_how_many_pixels_a_latent_depends_on(side, factor, reached):
    for count, expected in enumerate(reached, 1):
        flow = steps(side, factor, count).double()
        x = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(flow(x)[0][0, 0, 5, 11], x)
        assert int((grad != 0).sum()) == expected


def test_reversible_training_has_the_same_gradients():
    x = torch.rand(4, 1, 16, 16, dtype=torch.float64)
    found = []
    for reversible in (False, True):
        flow = steps(16, 4, 4, reversible=reversible).double()
        flow.initialize(x)
        z, log_det = flow(x)
        (0.5 * z.square().flatten(1).sum(1) - log_det).sum().backward()
        found.append([parameter.grad for parameter in flow.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain)

"""FlowGMM's trunks: golden sizes, order of latents, inverses, Jacobians, batch statistics, reversible training."""

import math

import pytest
import torch
from bijections import assert_inverts, assert_log_det, scatter

from fastflow.models import real_nvp_trunk, tabular_trunk
from fastflow.nn import AffineCoupling, FlowSequential, WeightNormResNet

LIGHT = {"scales": 3, "blocks": 4, "doubling": False}  # RealNVPMNIST


def _couplings(trunk: FlowSequential) -> list[AffineCoupling]:
    return [layer for layer in trunk.layers if isinstance(layer, AffineCoupling)]


@pytest.mark.parametrize(("build", "parameters", "couplings", "leaving"), [
    (lambda: real_nvp_trunk((3, 32, 32)), 19_631_640, 10, [1536]),
    (lambda: real_nvp_trunk((1, 28, 28), **LIGHT), 5_144_664, 16, [392, 196]),
    (lambda: tabular_trunk(768, couplings=7, hidden=1024), 23_890_944, 7, []),
    (lambda: tabular_trunk(50), 1_046_480, 10, []),
], ids=["RealNVP", "RealNVPMNIST", "text", "UCI"])
def test_golden_sizes(build, parameters, couplings, leaving):
    """seed-systems 12.12. Published counts hold one direction more for every gain, see `real_nvp_trunk`."""
    with torch.device("meta"):
        trunk = build()
    gains = sum(layer.gain.numel() for layer in _couplings(trunk))
    assert sum(parameter.numel() for parameter in trunk.parameters()) + gains == parameters
    assert len(_couplings(trunk)) == couplings
    assert trunk.leaving == leaving
    assert trunk.output_shape(trunk.shape) == (math.prod(trunk.shape),)


def test_widths_double_or_not():
    def widths(**options):
        return [layer.conditioner.input.out_channels
                for layer in _couplings(real_nvp_trunk((3, 8, 8), hidden=4, blocks=1, **options))]

    assert widths() == [4] * 3 + [8] * 7
    assert widths(doubling=False) == [4] * 10


def test_the_first_half_of_the_channels_goes_on():
    """Of [z_1 | z_2], z_1 left after the first scale; couplings that change nothing show which pixels those are."""
    trunk = real_nvp_trunk((1, 4, 4), hidden=2, blocks=0).double().eval()
    for coupling in _couplings(trunk):
        torch.nn.init.zeros_(coupling.gain)
        torch.nn.init.zeros_(coupling.conditioner.output.parametrizations.weight.original0)
        torch.nn.init.zeros_(coupling.conditioner.output.bias)
    x = (torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4) + 0.5) / 16
    z, _ = trunk(x)
    constrained = torch.special.logit(0.9 * x + 0.05)
    rows = constrained[0, 0, 0::2].flatten(), constrained[0, 0, 1::2].flatten()  # dy = 0 are channels 0 and 1
    squeezed = [row.view(2, 2, 2).permute(2, 0, 1).flatten() for row in rows]
    assert torch.allclose(z[0], torch.cat([squeezed[1], squeezed[0]]))


IMAGES = {
    "RealNVP": lambda: real_nvp_trunk((3, 4, 6), hidden=4, blocks=1),
    "RealNVPMNIST": lambda: real_nvp_trunk((1, 28, 28), **LIGHT | {"hidden": 4, "blocks": 1}),  # ends at 7 x 7
    "one scale": lambda: real_nvp_trunk((2, 3, 3), scales=1, hidden=4, blocks=1),
}
VECTORS = {
    "tabular": lambda: tabular_trunk(7, couplings=4, hidden=8),
    "toy": lambda: tabular_trunk(2, couplings=5, hidden=8, dropout=0.0),
}


def _moved(trunk: FlowSequential) -> FlowSequential:
    return scatter(trunk, 0.05).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*IMAGES, *VECTORS])
def test_inverts(name, dtype):
    trunk = _moved((IMAGES | VECTORS)[name]()).to(dtype)
    x = torch.rand(4, *trunk.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_inverts(trunk, x)


@pytest.mark.parametrize("build", [
    lambda: real_nvp_trunk((1, 4, 4), hidden=3, blocks=1),
    lambda: real_nvp_trunk((1, 3, 3), scales=1, hidden=3, blocks=1),
    *VECTORS.values(),
], ids=["two scales", "one scale", *VECTORS])
def test_log_det(build):
    trunk = _moved(build()).double()
    assert_log_det(trunk, torch.rand(2, *trunk.shape, dtype=torch.float64) * 0.8 + 0.1)


def test_tabular_formula():
    """The first coupling keeps the first floor(D / 2) features and moves the rest, the second the other way round."""
    trunk, x = _moved(tabular_trunk(5, couplings=2, hidden=4)).double(), torch.randn(3, 5, dtype=torch.float64)
    z, expected = x, 0.0
    for coupling, keeps in zip(trunk.layers, ([1, 1, 0, 0, 0], [0, 0, 1, 1, 1]), strict=True):
        keep = torch.tensor(keeps, dtype=torch.float64)
        s, t = coupling.conditioner(z * keep).chunk(2, 1)
        log_scale = (1 - keep) * coupling.gain * torch.tanh(s)
        z, expected = keep * z + (1 - keep) * (z + t) * log_scale.exp(), expected + log_scale.sum(1)
    mine, log_det = trunk(x)
    assert torch.allclose(mine, z)
    assert torch.allclose(log_det, expected)


def test_statistics_are_the_batchs_in_training_alone():
    trunk, x = real_nvp_trunk((1, 4, 4), hidden=3, blocks=1).double(), torch.rand(6, 1, 4, 4, dtype=torch.float64)
    part = trunk(x)[0][:3]
    assert not torch.allclose(part, trunk(x[:3])[0])
    trunk.eval()
    assert torch.allclose(trunk(x)[0][:3], trunk(x[:3])[0])
    norm = next(module for module in trunk.modules() if isinstance(module, WeightNormResNet)).in_norm
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("name", ["RealNVP", "tabular"])
def test_reversible_training_has_the_same_gradients_and_statistics(name):
    """Batch statistics and dropout of the recomputed conditioners are those of the forward pass."""
    build = {"RealNVP": lambda reversible: real_nvp_trunk((1, 4, 4), hidden=3, blocks=1, reversible=reversible),
             "tabular": lambda reversible: tabular_trunk(6, couplings=3, hidden=8, reversible=reversible)}[name]
    plain, reversible = (scatter(build(each), 0.05).double().train() for each in (False, True))
    reversible.load_state_dict(plain.state_dict())
    x = torch.rand(5, *plain.shape, dtype=torch.float64)
    for trunk in (plain, reversible):
        torch.manual_seed(3)
        z, log_det = trunk(x)
        (z.square().sum() - log_det.sum()).backward()
    for (name, mine), other in zip(reversible.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-6, atol=1e-8), name
    for (name, mine), other in zip(reversible.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(mine.double(), other.double()), name


@pytest.mark.parametrize(("build", "message"), [
    (lambda: real_nvp_trunk((1, 6, 6), scales=3, hidden=2, blocks=0),
     r"\(Squeeze\) does not fit samples of shape \(2, 3, 3\)"),
    (lambda: tabular_trunk(1), "tabular_trunk: features is 1, expected at least 2"),
])
def test_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build()

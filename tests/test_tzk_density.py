"""TzK's densities: exact inverses, log-determinants, mass, styles integrated out, golden sizes."""

import math

import pytest
import torch
from bijections import assert_inverts, assert_log_det, scatter
from torch import nn
from torch.distributions import Normal
from tzk_cases import grid, images, plane, points

from fastflow.models import TzK, tzk_trunk
from fastflow.models.knowledge import Knowledge, Latent
from fastflow.models.tzk_flows import regressor
from fastflow.nn import ChannelMix, ElementwiseAffine, SymLog


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_golden_sizes():
    model = TzK.mnist_omniglot()
    assert (model.classes, len(model.knowledge), model.features, model.levels) == (10, 12, 1024, 256)
    assert _parameters(model.trunk) == 10 * (2 * 256 + 16 + 2 * 1024) + 2 * 1024
    mlp = [(inputs + 1) * 70 + 2 * 71 * 70 + 3 for inputs in (1024, 2)]
    c_flow, z_flow = 4 * (2 * 4 + 2 + 4) + 4, 4 * (2 * 256 + 16 + 2048) + 2048
    each = mlp[0] + 71 + mlp[1] + 71 + (mlp[0] + 71 * 4 + c_flow) + (mlp[1] + 71 * 2048 + z_flow)
    assert _parameters(model.knowledge["digit_3"]) == each == 341_938
    assert _parameters(model) == 27_808 + 1024 + 12 * each
    kinds = [ChannelMix, ElementwiseAffine, SymLog]
    assert [sum(isinstance(layer, kind) for layer in model.trunk.layers) for kind in kinds] == [10, 11, 10]
    assert [layer.interleaved for layer in model.trunk.layers if hasattr(layer, "undo") and not layer.undo] == 5 * [
        False, True]  # fmt: skip
    dense = tzk_trunk((1, 32, 32), steps=1, tile=256)
    assert [layer.channels for layer in dense.layers if isinstance(layer, ChannelMix)] == [256]
    assert [type(layer) for layer in regressor(3, 2)] == 3 * [nn.Linear, nn.PReLU] + [nn.Linear]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("tile", [16, 256])
def test_the_trunk_inverts(tile, dtype):
    flow = tzk_trunk((1, 32, 32), tile=tile).to(dtype)
    x = torch.rand(64, 1, 32, 32, dtype=dtype)
    flow.initialize(x)
    assert_inverts(flow, x[:8])


def test_log_det_of_the_trunk_is_the_jacobian():
    for flow, x in ((tzk_trunk((1, 4, 4), steps=3), torch.rand(16, 1, 4, 4).double()),
                    (tzk_trunk((3,), steps=3, alpha=None), torch.randn(16, 3).double())):  # fmt: skip
        flow = flow.double()
        flow.initialize(x)
        assert_log_det(scatter(flow), x[:2])


def _scattered(shape: tuple[int, ...] = (1, 4, 4)) -> Knowledge:
    return scatter(Knowledge(shape, hidden=8).double(), 0.1)


def test_the_conditional_flows_invert_and_have_their_jacobians():
    knowledge = _scattered()
    for density, x in ((knowledge.data_given_style, torch.randn(4, 1, 4, 4).double()),
                       (knowledge.style_given_data, torch.randn(4, 2).double())):  # fmt: skip
        assert_inverts(density.flow, x)
        assert_log_det(density.flow, x)
        context = torch.randn(4, density.regressor[0].in_features, dtype=torch.float64)
        noise = 0.2 * torch.randn(4, density.features, dtype=torch.float64)
        drawn = density.draw(context, noise)
        mean, log_variance = (0.1 * density.regressor(context)).chunk(2, 1)
        z, log_det = density.flow(drawn)
        expected = log_det + Normal(mean, (0.5 * log_variance).exp()).log_prob(z.flatten(1)).sum(1)
        assert torch.allclose(z.flatten(1), mean + (0.5 * log_variance).exp() * noise, atol=1e-8)
        assert torch.allclose(density.log_prob(drawn, context), expected)


def test_log_variances_are_clamped():
    density = _scattered((2,)).style_given_data
    for sign in (-1.0, 1.0):
        with torch.no_grad():
            density.regressor[-1].bias[2:] = sign * 100.0
        noise = torch.ones(1, 2, dtype=torch.float64)
        context = torch.zeros(1, 2, dtype=torch.float64)
        moved = density.flow(density.draw(context, noise))[0] - density.flow(density.draw(context, 0 * noise))[0]
        assert torch.allclose(moved, torch.full_like(moved, math.exp(sign * 3.5)))


def test_draws_of_style_are_finite_however_far():
    """Training draws C at every step, so SymLog compresses it; float32, 30 standard deviations."""
    density = Knowledge((2,)).style_given_data
    drawn = density.draw(torch.zeros(3, 2), torch.tensor([[30.0, -30.0], [1.0, 0.0], [0.0, 0.1]]))
    assert drawn.isfinite().all()
    assert density.log_prob(drawn[1:], torch.zeros(2, 2)).isfinite().all()


def test_masses_are_one():
    """The integrals of p(T), p(T | kappa = 1, C) and p(C | T, kappa = 1) on grids (seed-systems 12.11)."""
    model, one = plane(), torch.ones(1, 2, dtype=torch.float64)
    with torch.no_grad():
        x, area = grid(25.0, 1001)
        assert abs(model.log_prob(x).exp().sum().item() * area - 1) < 0.01
        style = 0.5 * one.expand(len(x), 2)
        assert abs(model.log_conditional(x, "a", style).exp().sum().item() * area - 1) < 0.01
        c, area = grid(12.0, 401)
        density = model.knowledge["a"].style_given_data
        assert abs(density.log_prob(c, one.expand(len(c), 2)).exp().sum().item() * area - 1) < 0.01


def test_styles_are_integrated_out():
    """log p(T, kappa = 1), p(kappa = 1) and p(T | kappa = 1) against sums over a grid of C."""
    model, x = plane(), points(5)
    c, area = grid(8.0, 161)
    type_ = model.knowledge["a"]
    with torch.no_grad():
        z, log_det = model.trunk(x)
        prior = Normal(0.0, 1.0).log_prob(c).sum(1)
        odds = type_.kappa_given_style(c)[:, 0]
        given = torch.stack([type_.data_given_style.log_prob(row.expand(len(c), 2), c) for row in z], 1) + log_det
        joint = torch.logsumexp(given + (prior + nn.functional.logsigmoid(odds))[:, None], 0) + math.log(area)
        present = torch.logsumexp(prior + nn.functional.logsigmoid(odds), 0) + math.log(area)
        assert abs(type_.log_present() - present) < 1e-3
        found = model.log_class_joint(x, draws=100_000)[:, 0]
        assert (found - joint).abs().max() < 0.02
        assert (model.log_conditional(x, "a", draws=50_000) - (joint - present)).abs().max() < 0.02
        one = model.log_conditional(x.expand(4000, 5, 2).reshape(-1, 2), "a", draws=1).view(4000, 5)
        assert (one.exp().mean(0).log() - (joint - present)).abs().max() < 0.1  # one draw is unbiased too
        proposal = type_.style_given_data.regressor[-1]
        start = proposal.bias.clone()
        proposal.bias[2:] = -100.0  # clamped: draws of p(C | T) alone would be 4 nats too low
        assert (model.log_class_joint(x, draws=50_000)[:, 0] - joint).abs().max() < 0.05
        proposal.bias.copy_(start)
        edge = type_.style_given_data.flow.flow.layers[-1].log_scale
        start = edge.clone()
        edge.fill_(-8.0)  # beyond which no C inverts
        assert not type_.style_given_data.log_prob(torch.ones_like(x), z).isfinite().any()
        assert (model.log_class_joint(x, draws=50_000)[:, 0] - joint).abs().max() < 0.05
        edge.copy_(start)
        expert = model.product_of_experts(x, ["a", "b"], draws=50_000)
        b = model.log_conditional(x, "b", draws=50_000)
        assert torch.allclose(expert, joint - present + b - model.log_prob(x), atol=0.05)
        assert torch.allclose(model.product_of_experts(x, []), model.log_prob(x))


def test_styles_drawn_are_those_of_the_type():
    """p(C | kappa = 1) against moments on a grid; the odds are steep, so that it is not p(C)."""
    type_ = plane().knowledge["a"]
    with torch.no_grad():
        type_.kappa_given_style[-1].weight.mul_(20)
        c, _ = grid(8.0, 161)
        weights = (Normal(0.0, 1.0).log_prob(c).sum(1) + nn.functional.logsigmoid(type_.style_log_odds(c))).softmax(0)
        drawn = type_.sample_style(4000, torch.Generator().manual_seed(1))
    mean = (weights[:, None] * c).sum(0)
    assert mean.abs().max() > 0.09  # of p(C) it is 0
    assert torch.allclose(drawn.mean(0), mean, atol=0.06)
    assert torch.allclose(drawn.var(0), (weights[:, None] * (c - mean).square()).sum(0), atol=0.1)


def test_a_samples_latents_are_what_was_drawn():
    model, n = plane(steps=2), 4000
    style = points(n, 3)
    x = model.sample(n, "b", 0.7, torch.Generator().manual_seed(2), style=style)
    with torch.no_grad():
        density = model.knowledge["b"].data_given_style
        mean, log_variance = (0.1 * density.regressor(style)).chunk(2, 1)
        noise = (density.flow(model.encode(x).z)[0] - mean) * (-0.5 * log_variance).exp()
        prior = model.encode(model.sample(n, temperature=0.7)).z / nn.functional.softplus(model.base.rho)
    for normal in (noise, prior):
        assert normal.mean(0).abs().max() < 0.05
        assert (normal.std(0) / 0.7 - 1).abs().max() < 0.05


def test_classes_and_bits():
    model, x, noise = images()
    log_base, scores = model.class_scores(x, noise)
    data = model.encode(x, noise)
    odds = torch.stack([model.knowledge[name].log_odds(data.z) for name in ("zero", "one")], 1)
    present = torch.sigmoid(odds)
    assert isinstance(data, Latent)
    assert torch.equal(log_base, data.log_prob)
    assert torch.allclose(model.log_prob(x, noise), log_base, rtol=1e-5)
    assert torch.allclose(scores.exp(), present / present.sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(model.predict(x, noise), present.argmax(1))
    bits = model.bits_per_pixel(log_base)
    assert torch.allclose(bits, model.bits_per_dim(x, noise), rtol=1e-5)
    assert torch.allclose(model.bits_per_pixel(log_base, 49), bits * 64 / 49)
    kappa = model.observed(torch.tensor([0, 1, -1]))
    assert {name: value.tolist() for name, value in kappa.items()} == {"zero": [1, 0, -1], "one": [0, 1, -1]}


def test_what_labels_and_groups_say():
    """Rows of a digit, of an unlabelled one, and of a drawing that is no digit."""
    model = TzK(tzk_trunk((2,), steps=1, alpha=None), 1, ["a", "b"], ["yes", "no"], ["no"])
    kappa = model.observed(torch.tensor([0, 1, -1, -1]), torch.tensor([0, 0, 0, 1]))
    assert {name: value.tolist() for name, value in kappa.items()} == {
        "yes": [1, 1, 1, 0], "no": [0, 0, 0, 1], "a": [1, 0, -1, 0], "b": [0, 1, -1, 0]}  # fmt: skip


def test_a_type_starts_near_the_prior():
    """Also one that joins a model whose prior is no standard normal any more."""
    model, x, noise = images(rows=64, scattered=0.0)
    style, standard = torch.randn(64, 2), model.log_prob(x, noise)
    with torch.no_grad():
        model.base.rho.sub_(1.0)
    model.add("late")
    narrow = model.log_prob(x, noise)
    assert (standard - narrow).mean() > 0.5 * model.features
    for name, prior in (("digits", standard), ("late", narrow)):
        assert (model.log_conditional(x, name, style, noise) - prior).abs().mean() < 0.1 * model.features


def test_the_trunk_starts_nearly_linear():
    """Elements with mean 0 and standard deviation 1, of a batch that it has not seen almost so."""
    model, x, noise = images(rows=512, scattered=0.0)
    z = model.encode(x, noise).z
    assert z.mean(0).abs().max() < 1e-4
    assert (z.std(0) - 1).abs().max() < 1e-4
    steps = [layer for layer in model.trunk.layers if isinstance(layer, ElementwiseAffine)]
    assert [bool(layer.log_scale.any()) for layer in steps] == [True, False, True]
    z = model.encode(x, torch.rand(x.shape)).z
    assert z.abs().max() < 8

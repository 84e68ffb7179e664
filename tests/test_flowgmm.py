"""FlowGMM: densities by their definition, the mixture, where means start, calibration, samples, what it refuses."""

import copy
import math

import pytest
import torch
from flowgmm_cases import NET, images, points, small_image, small_toy
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import MultivariateNormal

from fastflow.models import FlowGMM, tabular_trunk, vector_trunk
from fastflow.models.class_means import (
    antipodal_means,
    block_means,
    circle_means,
    class_averages,
    constant_means,
    random_means,
)
from fastflow.models.flowgmm import calibrated_scale
from fastflow.ops import class_marginal, uniform_noise


def test_scores_are_those_of_dense_normals():
    """seed-systems 12.8, at D = 64."""
    model = small_image(scale=1.3, prior=[0.5, 0.3, 0.2]).double()
    x, noise = images(5), torch.rand(5, 1, 8, 8, dtype=torch.float64)
    log_base, scores = model.class_scores(x, noise)
    z, log_det = model.trunk((x + noise) / 17)
    covariance = (1.3**2) * torch.eye(64, dtype=torch.float64)
    for k, share in enumerate([0.5, 0.3, 0.2]):
        dense = MultivariateNormal(model.head.means[k], covariance).log_prob(z)
        assert torch.allclose(scores[:, k], dense + math.log(share), rtol=1e-6)
    assert torch.equal(log_base, log_det)


def test_density_is_that_of_the_whole_map():
    model, x = small_toy(scale=0.8), points(3)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(lambda v: model.trunk(v[None])[0][0], row)
        z = model.trunk(row[None])[0]
        normals = [MultivariateNormal(mean, 0.64 * torch.eye(2).double()).log_prob(z) for mean in model.head.means]
        expected = torch.linalg.slogdet(jacobian).logabsdet + torch.cat(normals) - math.log(3)
        assert torch.allclose(model.log_joint(row[None])[0], expected, rtol=1e-6)


def test_mass_is_one():
    """The integral over x and the sum over classes of a 2-D FlowGMM (seed-systems 12.11)."""
    model, axis = small_toy(radius=1.5), torch.linspace(-20, 20, 801, dtype=torch.float64)
    with torch.no_grad():
        for coupling in model.trunk.layers:
            coupling.gain.mul_(0.3)  # no scale beyond what the grid resolves
        joint = model.log_joint(torch.cartesian_prod(axis, axis)).exp().sum(0) * (axis[1] - axis[0]) ** 2
    assert torch.allclose(joint, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.002)


def test_published_scales_and_means():
    assert FlowGMM.toy().head.scales.flatten().tolist() == pytest.approx([1.0, 1.0])
    hepmass = FlowGMM.tabular(21, 2, trunk={"couplings": 2, "hidden": 4})
    assert hepmass.head.scales.flatten().tolist() == pytest.approx([1.3132617] * 2)
    assert hepmass.head.means.norm(dim=1).tolist() == pytest.approx([3.75, 3.75])
    assert torch.equal(hepmass.head.means[0], -hepmass.head.means[1])
    news = FlowGMM.tabular(768, 4, trunk={"couplings": 1, "hidden": 4})
    assert news.head.means.std().item() == pytest.approx(0.56, rel=0.05)
    moons = FlowGMM.toy(2, radius=3.5 * math.sqrt(2), start=1.25 * math.pi, trunk={"hidden": 4})
    assert moons.head.means.flatten().tolist() == pytest.approx([-3.5, -3.5, 3.5, 3.5], abs=1e-6)
    mnist = FlowGMM.mnist(trunk={"scales": 3, **NET})
    assert (mnist.features, mnist.classes, mnist.levels, mnist.shape) == (784, 10, 256, (1, 28, 28))
    assert mnist.head.means.std().item() == pytest.approx(1.0, rel=0.05)


def test_only_what_is_learned_learns():
    def learned(**options):
        model = FlowGMM.toy(2, trunk={"hidden": 4}, **options)
        return [name for name, parameter in model.head.named_parameters() if parameter.requires_grad]

    assert learned() == []
    assert learned(learn_means=True) == ["means"]
    assert learned(learn_scales=True, prior="learned") == ["rho", "prior.logits"]


def test_gradients_reach_every_parameter():
    model = small_toy(learn_means=True, learn_scales=True, prior="learned").train()
    log_base, scores = model.class_scores(points(6))
    (log_base + class_marginal(scores, torch.tensor([0, 1, 2, -1, -1, -1]))).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_simple_means():
    circle = circle_means(4, 2.0)
    assert torch.allclose(circle, torch.tensor([[2.0, 0], [0, 2], [-2, 0], [0, -2]]), atol=1e-6)
    assert antipodal_means(9, 5.0).norm(dim=1).tolist() == pytest.approx([5.0, 5.0])
    assert constant_means(10, 2, 0.5)[:, 1].tolist() == [0.5 * (k - 4) for k in range(10)]
    assert block_means(3, 7, 2.0).tolist() == [[2, 2, 0, 0, 0, 0, 0], [0, 0, 2, 2, 0, 0, 0], [0, 0, 0, 0, 2, 2, 0]]
    first, second = (random_means(3, 5, 0.1, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.abs().max() < 0.5


def test_means_placed_by_data():
    model, x = small_image(), images(9)
    labels = torch.tensor([0, 1, 2, 0, 1, -1, -1, -1, -1])
    v = (x + 0.5) / 17
    z = model.embed(x).detach()
    mean_image = torch.stack([(v[0] + v[3]) / 2, (v[1] + v[4]) / 2, v[2]])
    expected = {"data": mean_image.flatten(1), "latents": torch.stack([(z[0] + z[3]) / 2, (z[1] + z[4]) / 2, z[2]]),
                "latent_of_mean": model.trunk(mean_image)[0]}
    for kind, means in expected.items():
        model.place_means(kind, x, labels, radius=0.5)
        assert torch.allclose(model.head.means, 0.5 * means, atol=1e-4), kind
    model.place_means("rows", x, labels.masked_fill(labels == 2, -1), generator=torch.Generator().manual_seed(0))
    found = [(z - mean).abs().flatten(1).sum(1).argmin().item() for mean in model.head.means]
    assert all(torch.equal(z[row], mean) for row, mean in zip(found, model.head.means, strict=True))
    assert found[0] in (0, 3)
    assert found[1] in (1, 4)
    assert found[2] in (2, 5, 6, 7, 8)


def test_calibration_is_the_least_cross_entropy():
    z, labels = points(400), torch.randint(2, (400,))
    means, log_prior = torch.tensor([[-1.0, 0.5], [1.0, 0.0]]).double(), torch.tensor([0.3, 0.7]).double().log()
    z += means[labels]
    scale = calibrated_scale(z, labels, means, log_prior)

    def cross_entropy(s):
        energies = -0.5 * (z[:, None] - means).square().sum(2) / s**2
        return nn.functional.cross_entropy(energies + log_prior, labels).item()

    assert all(cross_entropy(scale) < cross_entropy(scale * factor) for factor in (0.98, 1.02, 0.5, 2.0))


def test_calibration_finds_the_scale_of_the_data():
    """Rows drawn with scale 2.5 from means that a scale of 1 would tell apart with far too much confidence."""
    model = small_toy(2, radius=2.0)
    labels = torch.arange(2).repeat(4000)
    z = model.head.means[labels].detach() + 2.5 * points(8000)
    before = model.head.cross_entropy(z, labels).mean()
    assert model.calibrate(z, labels) == pytest.approx(2.5, rel=0.1)
    assert model.head.scales.flatten().tolist() == pytest.approx([model.calibrate(z, labels)] * 2)
    assert model.head.cross_entropy(z, labels).mean() < before - 0.1
    assert not model.head.rho.requires_grad


@pytest.mark.parametrize(("z", "message"), [
    ([[-1.0, 0.0], [1.0, 0.0]], "all 2 rows have the mean of their own class nearest"),
    ([[1.0, 0.0], [-1.0, 0.0]], "the means are no nearer to the rows of their own class"),
])
def test_calibration_without_a_best_scale(z, message):
    with pytest.raises(ValueError, match=message):
        calibrated_scale(torch.tensor(z), torch.tensor([0, 1]), torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.zeros(2))


def test_samples_are_mapped_back_to_the_mixture():
    model = small_toy(scale=0.7)
    x = model.sample(3000, 1, temperature=0.5, generator=torch.Generator().manual_seed(2))
    z = model.embed(x)
    assert torch.allclose(z.mean(0), model.head.means[1], atol=0.05)
    assert torch.allclose(z.std(0), torch.full((2,), 0.35).double(), rtol=0.06)
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(model.predict(model.sample(3, labels, temperature=0.0)), labels)


def test_prototypes_and_interpolation():
    model, x = small_toy(), points(6)
    prototypes = model.prototypes()
    assert torch.allclose(model.embed(prototypes), model.head.means)
    path = model.interpolate(x[:3], x[3:], steps=5)
    assert path.shape == (5, 3, 2)
    assert torch.allclose(path[0], x[:3])
    assert torch.allclose(path[-1], x[3:])
    assert torch.allclose(model.embed(path[2]), (model.embed(x[:3]) + model.embed(x[3:])) / 2)


def test_images():
    model, x = small_image(), images(4)
    assert torch.equal(model.log_prob(x), model.log_prob(x, torch.full(x.shape, 0.5)))
    path = model.interpolate(x, x.flip(0), 2).flatten(0, 1)
    for made in (model.sample(3), model.sample(0), model.prototypes(), path):
        assert made.shape[1:] == (1, 8, 8)
        assert made.numel() == 0 or 0 <= made.min() <= made.max() <= 1
    assert (model.double().decode(model.embed(x)) - (x.double() + 0.5) / 17).abs().max() < 1e-9
    expected = math.log2(17) - model.log_prob(x) / (64 * math.log(2))
    assert torch.allclose(model.bits_per_dim(x), expected)


def test_continuous_data():
    model, x = small_toy(), points(5)
    assert torch.allclose(model.bits_per_dim(x), -model.log_prob(x) / (2 * math.log(2)))
    assert torch.allclose(model.float().log_prob(x.float()), model.double().log_prob(x).float(), atol=1e-4)
    with pytest.raises(TypeError, match=r"FlowGMM: x has dtype torch\.int64"):
        model.log_prob(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"noise is given for continuous data"):
        model.log_prob(x, torch.rand(5, 2))


def test_start_and_saving():
    x, labels = images(8), torch.tensor([0, 0, 1, -1])
    model = small_image(prior="empirical")
    model.initialize(x, labels, uniform_noise(x.shape, seed=0, step=0, rows=torch.arange(8)))
    assert torch.allclose(model.head.prior.log_prob().exp(), torch.tensor([3.0, 2.0, 1.0]) / 6)
    with pytest.raises(ValueError, match=r"FlowGMM\.initialize: labels is None"):
        model.initialize(x)
    loaded = small_image(prior="empirical", generator=torch.Generator().manual_seed(9))
    assert not torch.equal(loaded.log_joint(x), model.log_joint(x))
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded.log_joint(x), model.log_joint(x))
    assert torch.equal(copy.deepcopy(model).log_joint(x), model.log_joint(x))


def test_any_trunk_will_do():
    x = images(8)
    model = FlowGMM(vector_trunk((1, 8, 8), steps=1, hidden=4), random_means(3, 64), 17)
    model.initialize(x, noise=torch.rand(8, 1, 8, 8))
    assert all(module.initialized for module in model.modules() if hasattr(module, "initialized"))
    assert (model.double().decode(model.embed(x)) - (x.double() + 0.5) / 17).abs().max() < 1e-9


def test_forward_reads_no_value():
    """Tensors without values raise where a device would have to synchronise."""
    with FakeTensorMode():
        for model, x in ((FlowGMM.image((1, 8, 8), 17, 3, trunk=NET), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)),
                         (FlowGMM.tabular(6, 3, trunk={"hidden": 4}), torch.zeros(4, 6))):
            log_base, scores = model.class_scores(x)
            (log_base + class_marginal(scores, torch.zeros(4, dtype=torch.int64))).sum().backward()
            assert model.prototypes().shape == (3, *model.shape)


@pytest.mark.parametrize("model", [
    lambda: (FlowGMM.image((1, 8, 8), 17, 3, trunk={"scales": 1, "hidden": 2, "blocks": 0}).eval(), images(4)),
    lambda: (FlowGMM.tabular(6, 3, trunk={"couplings": 2, "hidden": 4}).eval(), torch.randn(4, 6)),
], ids=["image", "tabular"])
def test_class_scores_compile_in_one_graph(model):
    model, x = model()
    compiled = torch.compile(model.class_scores, fullgraph=True, backend="aot_eager")
    for mine, expected in zip(compiled(x), model.class_scores(x), strict=True):
        assert torch.allclose(mine, expected, atol=1e-3)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: FlowGMM(tabular_trunk(3, hidden=2), torch.zeros(2, 4)),
     r"means has shape \(2, 4\), expected \(classes, 3\)"),
    (lambda m: FlowGMM.toy(trunk={"hidden": 2}, scale=0.0), "scale is 0.0, expected a positive number"),
    (lambda m: m.sample(2, 3), r"FlowGMM\.sample: y has the value 3, expected 0 to 2"),
    (lambda m: m.place_means("kmeans", points(2), torch.tensor([0, 1])),
     "kind is 'kmeans', expected one of data, latents"),
    (lambda m: m.place_means("latents", points(2), torch.tensor([0, 2])), "labels have no row of class 1"),
    (lambda m: m.place_means("rows", points(2), torch.tensor([0, 2])), "labels leave no row for class 1"),
    (lambda m: m.interpolate(points(2), points(3)), r"second has shape \(3, 2\), expected \(2, 2\)"),
    (lambda m: m.log_prob(points(2)[:, :1]), r"x has shape \(2, 1\), expected \(B, 2\)"),
    (lambda m: block_means(3, 2), "features is 2, expected at least one a class, 3"),
    (lambda m: class_averages(points(2), torch.tensor([0, 5]), 3), "labels has the value 5, expected -1 to 2"),
])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_toy())

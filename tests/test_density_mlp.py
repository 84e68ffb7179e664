"""The networks of variational autoencoders: their densities against torch.distributions, and their classes."""

import math

import pytest
import torch
from bijections import scatter
from torch import distributions as D
from torch.autograd import gradcheck

from fastflow.nn import BernoulliMLP, GaussianMLP, SoftplusMLP
from fastflow.nn.density_mlp import (
    importance_log_likelihood,
    normal_log_prob,
    reparameterized,
    standard_normal_kl,
    standard_normal_log_prob,
)


def _net(kind, *sizes, size=0.7):
    return scatter(kind(*sizes).double(), size)


def _normals(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_bernoulli_is_that_of_torch():
    net, x, value = _net(BernoulliMLP, 3, (5,), 4), _normals(6, 3), torch.rand(6, 4, dtype=torch.float64).round()
    assert torch.allclose(net.log_prob(value, x), D.Bernoulli(logits=net(x)).log_prob(value).sum(1), rtol=1e-13)
    assert torch.allclose(net.mean(x), D.Bernoulli(logits=net(x)).mean, rtol=1e-13)


def test_bernoulli_of_saturated_logits():
    """Where a sigmoid is 0 or 1 in float32, its logarithm still is the logit."""
    net = BernoulliMLP(1, (2,), 2)
    with torch.no_grad():
        net.output.weight.zero_()
        net.output.bias.copy_(torch.tensor([200.0, -200.0]))
    log_prob = net.log_prob(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.zeros(2, 1))
    assert log_prob.tolist() == [-400.0, 0.0]


def test_gaussian_is_that_of_torch():
    net, x, value = _net(GaussianMLP, 3, (5, 4), 4), _normals(6, 3), _normals(6, 4)
    mean, log_variance = net.parameters_of(x)
    expected = D.Normal(mean, (0.5 * log_variance).exp())
    assert torch.allclose(net.log_prob(value, x), expected.log_prob(value).sum(1), rtol=1e-12)
    assert torch.allclose(standard_normal_log_prob(value), D.Normal(0, 1).log_prob(value).sum(1), rtol=1e-12)
    assert torch.equal(net.mean(x), mean)


@pytest.mark.parametrize("value", [0.0, 1e-20])
def test_gaussian_of_a_vanishing_variance(value):
    """The inverse of e^-100 is beyond float32, the density is not."""
    found = normal_log_prob(torch.tensor([value]), torch.zeros(1), torch.tensor([-100.0]))
    expected = D.Normal(0.0, torch.tensor(math.exp(-50), dtype=torch.float64)).log_prob(torch.tensor(value))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_divergence():
    """Against torch's formula, and against the mean of log q - log p over draws."""
    mean, log_variance = _normals(5, 3), _normals(5, 3)
    q = D.Normal(mean, (0.5 * log_variance).exp())
    kl = standard_normal_kl(mean, log_variance)
    expected = D.kl_divergence(q, D.Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(1)
    assert torch.allclose(kl, expected, rtol=1e-12)
    z = reparameterized(mean, log_variance, _normals(200_000, 5, 3))
    ratios = normal_log_prob(z, mean, log_variance) - standard_normal_log_prob(z)
    error = ratios.std(0) / math.sqrt(len(z))
    assert ((ratios.mean(0) - kl).abs() <= 5 * error).all()
    assert ((z.mean(0) - mean).abs() <= 5 * q.stddev / math.sqrt(len(z))).all()


@pytest.mark.parametrize("kind", [BernoulliMLP, GaussianMLP])
def test_all_classes_at_once(kind):
    """They are what the classes give one by one, whether they share an input or have their own."""
    net, shared, own, value = _net(kind, 3, (5, 4), 2, 4), _normals(6, 1, 3), _normals(6, 4, 3), torch.rand(6, 1, 2)
    value = value.double()
    for x in (shared, own):
        columns = [net.log_prob(value[:, 0], x.expand(6, 4, 3)[:, k], torch.full((6,), k)) for k in range(4)]
        assert torch.allclose(net.log_prob(value, x), torch.stack(columns, 1), rtol=1e-12)


def test_the_class_enters_the_first_layer():
    net, x, labels = _net(SoftplusMLP, 3, (5,), 2, 4), _normals(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    inputs = torch.cat([x, torch.nn.functional.one_hot(labels, 4)], 1)
    weight = torch.cat([net.input.weight, net.of_class.weight], 1)
    hidden = torch.log1p(torch.exp(inputs @ weight.mT + net.input.bias))
    assert torch.allclose(net(x, labels), hidden @ net.output.weight.mT + net.output.bias, rtol=1e-12)


@pytest.mark.parametrize("kind", [BernoulliMLP, GaussianMLP])
def test_gradients(kind):
    net, x, value = _net(kind, 2, (3,), 2, 3), _normals(2, 3, 2), torch.rand(2, 1, 2, dtype=torch.float64)
    names, parameters = zip(*net.named_parameters(), strict=True)

    def log_prob(x, *parameters):
        named = dict(zip(["net." + name for name in names], parameters, strict=True))
        return torch.func.functional_call(_LogProb(net), named, (value, x))

    assert gradcheck(log_prob, (x.requires_grad_(), *parameters))


class _LogProb(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, value, x):
        return self.net.log_prob(value, x)


def test_initial_weights():
    net = GaussianMLP(400, (300,), 50, 10)
    net.initialize(0.001)
    assert abs(net.input.weight.std() / 0.001 - 1) < 0.05
    assert abs(net.of_class.weight.std() / 0.001 - 1) < 0.1
    assert not any(layer.bias.any() for layer in (net.input, net.output))
    net.initialize(None)
    assert abs(net.input.weight.std() / 400**-0.5 - 1) < 0.05
    assert abs(net.of_class.weight.std() / 10**-0.5 - 1) < 0.1
    assert 0.005 < net.input.bias.std() < 0.015
    assert not net.output.bias.any()
    assert not net.parameters_of(torch.randn(2, 1, 400))[1].any()  # variance 1
    assert net.mean(torch.randn(2, 1, 400)).any()


def test_importance_weights_in_one_go_and_in_parts():
    """Parts of S draws are the average of their likelihoods; the logarithm of ratios that underflow is kept."""
    decoder, x = _net(BernoulliMLP, 2, (4,), 1000), torch.ones(3, 1000, dtype=torch.float64)
    mean, log_variance = _normals(3, 2), _normals(3, 2)
    draw = torch.Generator().manual_seed(3)
    halves = [importance_log_likelihood(decoder, x, mean, log_variance, 8, draw) for _ in range(2)]
    whole = importance_log_likelihood(decoder, x, mean, log_variance, 16, draw.manual_seed(3), elements=8 * 3000)
    assert torch.allclose(whole, torch.logaddexp(*halves) - math.log(2), rtol=1e-12)
    assert (whole < -300).all()
    shifted = x * 0  # and where the ratios themselves are 0 in float64
    with torch.no_grad():
        decoder.output.bias.fill_(20)
    assert importance_log_likelihood(decoder, shifted, mean, log_variance, 4).isfinite().all()


def test_importance_weights_of_narrow_posteriors_far_from_zero():
    """In float32 a draw less its mean would have lost the noise."""
    decoder, mean, log_variance = BernoulliMLP(50, (2,), 3), torch.full((4, 50), 30.0), torch.full((4, 50), -18.0)
    x = torch.tensor([1.0, 0.0, 1.0]).expand(4, 3)
    found = importance_log_likelihood(decoder, x, mean, log_variance, 1, torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(0)).double()[0]
    z = 30 + math.exp(-9) * noise
    log_q = standard_normal_log_prob(noise) + 50 * 9
    expected = decoder.double().log_prob(x.double(), z) + standard_normal_log_prob(z) - log_q
    assert torch.allclose(found.double(), expected, rtol=4 * torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_dtype(dtype):
    net, x, labels = _net(SoftplusMLP, 3, (5,), 2, 4), _normals(2, 3), torch.tensor([1, 0])
    assert torch.equal(net(x, labels.to(dtype)), net(x, labels))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"BernoulliMLP: value lies in \[0, 17\], expected \[0, 1\]; see ops.binarize"):
        BernoulliMLP(2, (3,), 2).log_prob(torch.tensor([[0.0, 17.0]]), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"GaussianMLP: hidden is \[\], expected at least one width"):
        GaussianMLP(2, (), 2)
    with pytest.raises(ValueError, match="samples is 0, expected at least 1"):
        importance_log_likelihood(BernoulliMLP(1, (2,), 1), *[torch.zeros(1, 1)] * 3, samples=0)

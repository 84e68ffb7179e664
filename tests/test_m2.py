"""M2: golden sizes, its bounds against integrals on a grid, classes at once, analogies and styles."""

import pytest
import torch
from torch.autograd import gradcheck
from vae_cases import all_bits, assert_estimates, expected_class_scores, normal_nodes, small_m2, true_log_joint

from fastflow.models import M2, class_bound, style_plane


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def _batch(model, rows=5):
    x = torch.rand(rows, *model.shape, dtype=torch.float64).round()
    return x, torch.randn(rows, model.noise_features, dtype=torch.float64)


def test_golden_sizes():
    """784-500-50 with classes in the first layers, seed-systems 8 (b) and 11."""
    model = M2.mnist()
    assert _parameters(model.encoder) == (784 + 10 + 1) * 500 + 501 * 100
    assert _parameters(model.decoder) == (50 + 10 + 1) * 500 + 501 * 784
    assert _parameters(model.classifier) == 785 * 500 + 501 * 10
    assert _parameters(model) == 1_268_394
    assert _parameters(M2.mnist("code")) == 1_268_394 + 3 * 501 * 500
    assert (model.noise_features, model.features, model.classes) == (500, 784, 10)
    x, noise = torch.rand(2, 1, 28, 28).round(), torch.randn(2, 500)
    assert model.class_terms(x, noise)[0].shape == (2, 10)
    assert model.elbo(x.double(), noise).dtype == torch.float32


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_class_scores_by_their_definition(likelihood):
    """One class and one row at a time, each with its own part of the noise, by torch.distributions."""
    model = small_m2(likelihood, features=4, latent=2)
    x, noise = _batch(model)
    scores, log_q = model.class_terms(x, noise)
    logits = model.classifier(x)
    assert torch.allclose(log_q, torch.log(logits.exp() / logits.exp().sum(1, keepdim=True)), rtol=1e-10)
    normal = torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), 1)
    for row in range(5):
        for k in range(3):
            y = torch.tensor([k])
            mean, log_variance = (part[0] for part in model.encoder.parameters_of(x[row : row + 1], y))
            q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
            z = mean + q.stddev * noise[row, 2 * k : 2 * k + 2]
            if likelihood == "bernoulli":
                of_x = torch.distributions.Bernoulli(logits=model.decoder(z[None], y)[0])
            else:
                of_mean, of_log_variance = model.decoder.parameters_of(z[None], y)
                of_x = torch.distributions.Normal(of_mean[0], (0.5 * of_log_variance[0]).exp())
            expected = (of_x.log_prob(x[row]).sum() - torch.distributions.kl_divergence(q, normal).sum()
                        + torch.tensor([0.5, 0.3, 0.2])[k].log())
            assert torch.allclose(scores[row, k], expected, rtol=1e-6)  # the prior is stored in float32


@torch.no_grad()
def test_the_scores_are_bounds():
    """In expectation below log p(x, y), which sums to p(y) over every x, and the elbo below log p(x)."""
    model, x = small_m2(), all_bits()
    truth, expected = true_log_joint(model, x), expected_class_scores(model, x)
    assert torch.allclose(truth.exp().sum(0), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), rtol=1e-6)
    assert (expected < truth - 1e-4).all()
    bound = class_bound(expected, model.log_q(x))
    assert (bound <= expected.logsumexp(1)).all()
    nodes, weights = normal_nodes()
    draws = [model.elbo(x, node.expand(8, 3)) for node in nodes]
    assert torch.allclose(sum(w * d for w, d in zip(weights, draws, strict=True)), bound, rtol=1e-10)


@torch.no_grad()
def test_importance_sampling_closes_the_gap():
    """Its mean is the expected score for one draw, grows with the draws, and ends at log p(x, y)."""
    model, x = small_m2(), all_bits()[5:6]
    truth, generator = true_log_joint(model, x)[0], torch.Generator().manual_seed(0)
    means, errors = [], []
    for samples in (1, 4, 16):
        estimates = model.importance_scores(x.expand(20_000, 3), samples, generator)
        means.append(estimates.mean(0))
        errors.append(estimates.std(0) / 20_000**0.5)
    assert ((means[0] - expected_class_scores(model, x)[0]).abs() <= 5 * errors[0]).all()
    assert (means[1] - means[0] > 3 * (errors[0] + errors[1])).all()
    assert (means[2] - means[1] > 3 * (errors[1] + errors[2])).all()
    assert (truth - means[2] > 3 * errors[2]).all()
    assert_estimates(model.importance_scores(x.expand(20, 3), 10_000, generator), truth)


def test_determinism():
    model, (x, noise) = small_m2(), _batch(small_m2())
    assert torch.equal(model.elbo(x, noise), model.elbo(x, noise))
    draw = torch.Generator()
    first, second = (model.importance_scores(x, 4, draw.manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.importance_scores(x, 4, draw))
    samples = [model.sample(4, generator=draw.manual_seed(1)) for _ in range(2)]
    assert torch.equal(*samples)
    middle = torch.zeros_like(noise)
    assert torch.equal(model.class_terms(x)[0], model.class_terms(x, middle)[0])  # no noise: the means


def test_every_class_has_its_own_noise():
    model, (x, noise) = small_m2(latent=2), _batch(small_m2(latent=2))
    other = noise.clone()
    other[:, 2:4] += 1
    changed = model.class_terms(x, noise)[0] != model.class_terms(x, other)[0]
    assert torch.equal(changed, torch.tensor([False, True, False]).expand(5, 3))


def test_classifier_and_batches():
    model, (x, noise) = small_m2(), _batch(small_m2())
    posterior = model.predict_proba(x)
    assert torch.allclose(posterior.sum(1), torch.ones(5, dtype=torch.float64), rtol=1e-14)
    assert torch.equal(model.predict(x), posterior.argmax(1))
    whole, part = model.elbo(x, noise), model.elbo(x[2:3], noise[2:3])
    assert torch.allclose(whole[2:3], part, rtol=1e-12)
    assert model.elbo(x[:0], noise[:0]).shape == (0,)
    assert model.importance_scores(x[:0], 2).shape == (0, 3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_gradients(likelihood):
    model = small_m2(likelihood, features=2)
    x, noise = _batch(model, 3)
    labels = torch.tensor([1, -1, 2])
    names, parameters = zip(*model.named_parameters(), strict=True)

    def terms(*parameters):
        named = dict(zip(["model." + name for name in names], parameters, strict=True))
        return torch.func.functional_call(_Terms(model), named, (x, noise, labels))

    assert gradcheck(terms, parameters)


class _Terms(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model.training_terms(*inputs)


def test_one_pass_of_each_network(monkeypatch):
    """All classes go through encoder and decoder together, and x through the encoder's first matrix once."""
    model, (x, noise) = small_m2(latent=2), _batch(small_m2(latent=2))
    calls = {}
    for name in ("encoder.input", "decoder.input", "classifier.input"):
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, out, name=name: calls.setdefault(name, []).append(tuple(inputs[0].shape)))
    model.training_terms(x, noise, torch.full((5,), -1))
    assert calls == {"encoder.input": [(5, 1, 3)], "decoder.input": [(5, 3, 2)], "classifier.input": [(5, 3)]}


def test_weight_penalty():
    model = M2((3,), 2, 2, (4,))
    expected = 0.0
    for name, value in model.named_parameters():
        if name.endswith("weight") or name.startswith("classifier"):
            expected = expected + 0.5 * value.square().sum()
    assert torch.allclose(model.weight_penalty(), expected)
    model.weight_penalty().backward()
    assert model.encoder.input.bias.grad is None
    assert torch.equal(model.encoder.of_class.weight.grad, model.encoder.of_class.weight)
    assert torch.equal(model.classifier.input.bias.grad, model.classifier.input.bias)


def test_analogies_and_styles():
    model = small_m2(features=6, latent=2)
    x, labels = torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    grid = model.analogies(x, labels)
    assert grid.shape == (4, 3, 6)
    z = model.embed(x, labels)
    for k in range(3):
        assert torch.allclose(grid[:, k], model.decode(z, k), rtol=1e-12)
    assert torch.equal(model.embed(x), model.embed(x, model.predict(x)))
    assert torch.allclose(z, model.posterior(x)[0][range(4), labels], rtol=1e-12)
    plane = style_plane(2, 5).double()
    assert model.decode(plane, 1).shape == (25, 6)  # one class, all styles
    assert torch.allclose(model.decode(plane)[:, 1], model.decode(plane, 1), rtol=1e-12)
    z = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    warm = model.sample(3, 1, temperature=0.5, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(warm, model.decode(0.5 * z, 1), rtol=1e-12)
    cold = model.sample(3, 2, temperature=0.0)
    assert torch.allclose(cold, model.decode(torch.zeros(3, 2, dtype=torch.float64), 2))


def test_style_plane():
    z = style_plane(4, 3, (3, 1))
    assert z.shape == (9, 4)
    assert not z[:, [0, 2]].any()
    steps = torch.special.ndtr(z[:, [3, 1]])
    expected = torch.cartesian_prod(*[torch.tensor([1.0, 3.0, 5.0]) / 6] * 2)
    assert torch.allclose(steps, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"style_plane: steps is 2 and dims \(0, 4\), expected"):
        style_plane(4, 2, (0, 4))


def test_images_keep_their_shape():
    model = M2((1, 4, 5), 3, 2, (6,))
    x = torch.rand(2, 1, 4, 5)
    assert model.elbo(x, torch.randn(2, 6)).shape == (2,)
    assert model.analogies(x).shape == (2, 3, 1, 4, 5)
    assert model.sample(7, torch.zeros(7, dtype=torch.int64)).shape == (7, 1, 4, 5)


def test_compiles_whole():
    model = M2((4,), 3, 2, (5,))
    x, noise, labels = torch.rand(2, 4), torch.randn(2, 6), torch.tensor([1, -1])
    compiled = torch.compile(model.training_terms, fullgraph=True, backend="eager")
    for mine, expected in zip(compiled(x, noise, labels), model.training_terms(x, noise, labels), strict=True):
        assert torch.equal(mine, expected)


def test_autocast_reduces_in_float32():
    model = M2((4,), 3, 2, (5,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, log_q = model.class_terms(torch.rand(2, 4), torch.randn(2, 6))
    assert scores.dtype == log_q.dtype == torch.float32


def test_training_raises_the_bound():
    """A few steps on two clusters with one label each: the objective falls and the classifier finds the rest."""
    torch.manual_seed(1)
    labels = torch.arange(40) % 2
    x = 0.2 * torch.randn(40, 2) + (4 * labels[:, None] - 2)
    seen = torch.where(torch.arange(40) < 2, labels, -1)
    model = M2((2,), 2, 1, (8,), "gaussian", init_std=0.3)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(150):
        bound, cross_entropy = model.training_terms(x, torch.randn(40, 2), seen)
        loss = (-bound.sum() + 2.0 * cross_entropy.sum() + model.weight_penalty()) / 40
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    assert torch.equal(model.predict(x), labels)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda m, x, e: m.elbo(x[:, :2], e), ValueError, r"M2: x has shape \(2, 2\), expected \(B, 3\)"),
    (lambda m, x, e: m.elbo(x.long(), e), TypeError, r"M2: x has dtype torch\.int64"),
    (lambda m, x, e: m.elbo(3 * x + 1, e), ValueError, r"BernoulliMLP: value lies in"),
    (lambda m, x, e: m.elbo(x, e[:, :2]), ValueError, r"M2: noise has shape \(2, 2\), expected \(2, 3\)"),
    (lambda m, x, e: m.elbo(x, e, torch.tensor([0, 3])), ValueError, "class_marginal: labels has the value 3"),
    (lambda m, x, e: m.sample(2, 3), ValueError, "M2: y has the value 3, expected 0 to 2"),
    (lambda m, x, e: m.embed(x, torch.tensor([0])), ValueError, r"M2: y has shape \(1,\), expected \(2,\)"),
    (lambda m, x, e: M2((3,), 3, likelihood="poisson"), ValueError, "likelihood is 'poisson', expected one of"),
    (lambda m, x, e: M2((3,), 0), ValueError, "ClassPrior: classes is 0"),
    (lambda m, x, e: M2.mnist("new"), ValueError, r"M2\.mnist: preset is 'new', expected 'paper' or 'code'"),
])
def test_bad_arguments(call, error, message):
    model = small_m2()
    with pytest.raises(error, match=message):
        call(model, *_batch(model, 2))

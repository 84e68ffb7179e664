"""M1 and what its features are for; M1+M2 on top of it."""

import math

import pytest
import torch
from bijections import scatter
from vae_cases import all_bits, assert_estimates, normal_nodes, small_m1

from fastflow.models import M1, M1M2, M2, feature_classifier
from fastflow.nn.density_mlp import normal_log_prob, standard_normal_kl, standard_normal_log_prob


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _stack(latent=4, units=(0, 2, 3)):
    m1 = small_m1(features=5, latent=latent, size=0.5)
    model = M1M2.build(m1, torch.tensor(units), 3, latent=2, hidden=(6,), prior=[0.5, 0.3, 0.2])
    scatter(model.m2, 0.4)
    return model


def _true_log_prob(model, x):
    """log p(x), the one latent integrated out on a grid."""
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    log_prob = model.decoder.log_prob(x[:, None], z[None, :, None]) + standard_normal_log_prob(z[:, None])
    return log_prob.logsumexp(1) + math.log(z[1] - z[0])


def test_golden_sizes():
    """784-500-500-50 and back as released (~1.4M, seed-systems 11); 600 wide in the paper."""
    released, paper = M1.mnist("code"), M1.mnist()
    assert _parameters(released.encoder) == 785 * 500 + 501 * 500 + 501 * 100
    assert _parameters(released.decoder) == 51 * 500 + 501 * 500 + 501 * 784
    assert _parameters(released) == 1_361_884
    assert _parameters(paper) == 1_754_084
    model = M1M2.build(released, torch.arange(50), 10, hidden=(300,))
    assert _parameters(model) == 61 * 300 + 301 * 100 + 61 * 300 + 301 * 100 + 51 * 300 + 301 * 10  # M1 is frozen
    assert model.noise_features == 50 + 10 * 50


@torch.no_grad()
def test_the_elbo_is_a_bound():
    model, x = small_m1(), all_bits()
    truth = _true_log_prob(model, x)
    assert torch.allclose(truth.exp().sum(), torch.ones((), dtype=torch.float64), rtol=1e-10)
    nodes, weights = normal_nodes()
    expected = sum(w * model.elbo(x, node.expand(8, 1)) for node, w in zip(nodes, weights, strict=True))
    assert (expected < truth - 1e-4).all()
    estimates = model.importance_log_prob(x.expand(20, 8, 3).flatten(0, 1), 5000, torch.Generator().manual_seed(0))
    assert_estimates(estimates.view(20, 8), truth)
    rows, generator = x[3:4].expand(20_000, 3), torch.Generator().manual_seed(1)
    single, many = (model.importance_log_prob(rows, samples, generator) for samples in (1, 8))
    error = (single.std() + many.std()) / 20_000**0.5
    assert abs(single.mean() - expected[3]) <= 5 * error
    assert single.mean() + 3 * error < many.mean() < truth[3] - error


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_elbo_by_its_definition(likelihood):
    model = small_m1(likelihood, features=4, latent=2)
    x, noise = torch.rand(5, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    mean, log_variance = model.posterior(x)
    z = mean + (0.5 * log_variance).exp() * noise
    expected = model.decoder.log_prob(x, z) - standard_normal_kl(mean, log_variance)
    assert torch.allclose(model.elbo(x, noise), expected, rtol=1e-12)
    bound, cross_entropy = model.training_terms(x, noise, torch.full((5,), -1))  # a model of one class
    assert torch.allclose(bound, expected, rtol=1e-12)
    assert not cross_entropy.any()
    ratio = model.decoder.log_prob(x, z) - normal_log_prob(z, mean, log_variance)
    assert torch.allclose(model.log_likelihood_ratio(x, z), ratio, rtol=1e-12)
    assert torch.allclose(model.bits_per_dim_bound(x, noise), -expected / (4 * math.log(2)), rtol=1e-12)


def test_using_m1():
    model = M1((1, 4, 5), 3, (6,))
    x = torch.rand(4, 1, 4, 5)
    assert torch.equal(model.embed(x), model.posterior(x)[0])
    assert model.decode(torch.randn(2, 3)).shape == (2, 1, 4, 5)
    draw = torch.Generator()
    assert torch.equal(*[model.sample(3, generator=draw.manual_seed(2)) for _ in range(2)])
    assert torch.allclose(model.weight_penalty(), sum(0.5 * value.square().sum() for name, value in
                                                      model.named_parameters() if name.endswith("weight")))


def test_active_units():
    """Of 4 latents one has a mean that hardly varies, and is left out."""
    model = small_m1(features=5, latent=4)
    x = torch.rand(200, 5, dtype=torch.float64)
    with torch.no_grad():
        model.encoder.output.weight[1] *= 1e-4
        model.encoder.output.weight[[0, 2, 3]] *= 10
    deviation = model.embed(x).std(0)
    assert deviation[1] < 0.1 < deviation[[0, 2, 3]].min()
    assert model.active_units(x).tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match=r"expected one above threshold = 1000000\.0; train"):
        model.active_units(x, 1e6)
    with pytest.raises(ValueError, match=r"active_units: x has 1 row\(s\), expected at least 2"):
        model.active_units(x[:1])


@pytest.mark.parametrize("kind", ["knn", "linear_svm", "rbf_svm", "label_spreading"])
def test_feature_classifiers(kind):
    labels = torch.arange(60) % 3
    features = torch.randn(60, 4) + 8 * torch.nn.functional.one_hot(labels, 4)
    seen = torch.where(torch.arange(60) < 18, labels, -1)
    classifier = feature_classifier(kind, features, seen)
    fresh = torch.randn(30, 4) + 8 * torch.nn.functional.one_hot(labels[:30], 4)
    assert classifier.predict(fresh.double().numpy()).tolist() == labels[:30].tolist()


def test_feature_classifier_refuses():
    features = torch.randn(4, 2)
    with pytest.raises(ValueError, match="kind is 'tsvm', expected one of knn"):
        feature_classifier("tsvm", features, torch.tensor([0, 1, 0, 1]))
    few = features, torch.tensor([0, 1, -1, -1])
    for kind, rows, needed in (("knn", 2, 5), ("label_spreading", 4, 7)):
        with pytest.raises(ValueError, match=f"{kind} has {rows} rows, expected at least n_neighbors, {needed}; give"):
            feature_classifier(kind, *few)
        assert feature_classifier(kind, *few, n_neighbors=2).n_neighbors == 2
    assert feature_classifier("label_spreading", *few, kernel="rbf").kernel == "rbf"  # which has no neighbours
    with pytest.raises(ValueError, match=r"feature_classifier: features is nan at \(0, 0\)"):
        feature_classifier("knn", features * math.nan, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="fewer than two classes"):
        feature_classifier("knn", features, torch.tensor([1, 1, -1, -1]))
    with pytest.raises(ValueError, match=r"features have shape \(4, 2\) and labels \(3,\)"):
        feature_classifier("knn", features, torch.tensor([1, 1, 0]))


def test_stacked_terms():
    """M2's, of the drawn units of z1; with log_base the whole is the elbo of the stack, written out."""
    model = _stack()
    x, noise = torch.rand(6, 5, dtype=torch.float64).round(), torch.randn(6, 10, dtype=torch.float64)
    mean, log_variance = model.m1.posterior(x)
    z1 = mean + (0.5 * log_variance).exp() * noise[:, :4]
    scores, log_q = model.class_terms(x, noise)
    expected, expected_q = model.m2.class_terms(z1[:, [0, 2, 3]], noise[:, 4:])
    assert torch.equal(scores, expected)
    assert torch.equal(log_q, expected_q)
    log_base = (model.m1.decoder.log_prob(x, z1) - normal_log_prob(z1, mean, log_variance)
                + standard_normal_log_prob(z1[:, 1:2]))
    assert torch.allclose(model.class_scores(x, noise)[0], log_base, rtol=1e-12)
    labels = torch.tensor([0, -1, 2, -1, 1, -1])
    bound, _ = model.training_terms(x, noise, labels)
    assert torch.allclose(model.elbo(x, noise, labels), log_base + bound, rtol=1e-12)
    features = mean[:, [0, 2, 3]]
    assert torch.equal(model.predict_proba(x), model.m2.predict_proba(features))  # the mean, not a draw
    assert torch.allclose(model.predict_proba(x).sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(model.class_terms(x)[1], model.log_q(x))


@torch.no_grad()
def test_the_stack_is_a_bound():
    """Of every x and of every (x, y), whose probabilities are means over draws of the generative model."""
    model, x, rows = _stack(), all_bits(5), 20_000
    for net in (model.m1.encoder, model.m2.encoder):
        net.initialize(0.001)  # every q is near its prior: the bounds are near, too
    joint, joint_error = [], []
    for k, share in enumerate((0.5, 0.3, 0.2)):
        z2, z1 = torch.randn(rows, 2, dtype=torch.float64), torch.randn(rows, 4, dtype=torch.float64)
        mean, log_variance = model.m2.decoder.parameters_of(z2, torch.full((rows,), k))
        z1[:, [0, 2, 3]] = mean + (0.5 * log_variance).exp() * z1[:, [0, 2, 3]]
        likelihood = model.m1.decoder.log_prob(x[:, None], z1).exp()
        joint.append(share * likelihood.mean(1))
        joint_error.append(likelihood.std(1) / likelihood.mean(1) / rows**0.5)  # of the logarithm
    joint, joint_error = torch.stack(joint, 1), torch.stack(joint_error, 1)
    assert torch.allclose(joint.sum(), torch.ones((), dtype=torch.float64))
    repeated = x.repeat(400, 1)
    noise = torch.randn(len(repeated), model.noise_features, dtype=torch.float64)
    log_base, scores = model.class_scores(repeated, noise)
    elbo, of_classes = model.elbo(repeated, noise).view(400, 32), (log_base[:, None] + scores).view(400, 32, 3)
    for bound, truth, error in ((elbo, joint.sum(1), joint_error.amax(1)), (of_classes, joint, joint_error)):
        assert (bound.mean(0) < truth.log() + 5 * (error + bound.std(0) / 400**0.5)).all()
    assert elbo.mean(0).exp().sum() > 0.2


def test_only_m2_learns():
    model = _stack()
    x, noise = torch.rand(4, 5, dtype=torch.float64), torch.randn(4, 10, dtype=torch.float64)
    bound, cross_entropy = model.training_terms(x, noise, torch.tensor([0, 1, -1, -1]))
    (cross_entropy.sum() - bound.sum() + model.weight_penalty()).backward()
    assert all(parameter.grad is None for parameter in model.m1.parameters())
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.m2.parameters())
    assert torch.equal(model.weight_penalty(), model.m2.weight_penalty())


def test_using_the_stack():
    model = _stack()
    x = torch.rand(4, 5, dtype=torch.float64)
    z2 = model.embed(x, 1)
    assert z2.shape == (4, 2)
    images = model.decode(z2, 2)
    z1 = torch.zeros(4, 4, dtype=torch.float64)
    z1[:, [0, 2, 3]] = model.m2.decode(z2, 2)
    assert torch.allclose(images, model.m1.decode(z1), rtol=1e-12)
    assert torch.allclose(model.analogies(x, 1)[:, 2], images, rtol=1e-12)
    other = M1M2.build(small_m1(features=5, latent=4), torch.tensor([0, 1, 2]), 3, latent=2, hidden=(6,)).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.analogies(x), model.analogies(x))


def test_bad_stacks():
    m1 = M1((5,), 4, (6,))
    with pytest.raises(ValueError, match=r"M1M2: m2 describes shape \(2,\), expected \(3,\)"):
        M1M2(m1, M2((2,), 3, 2, (4,), "gaussian"), torch.arange(3))
    with pytest.raises(ValueError, match=r"M1M2: units lie in \[0, 4\], expected 0 to 3, M1's latents"):
        M1M2.build(m1, torch.tensor([0, 4]), 3)
    with pytest.raises(ValueError, match=r"M1M2: units \[1, 1\] name a latent twice"):
        M1M2.build(m1, torch.tensor([1, 1]), 3)
    with pytest.raises(ValueError, match="M1M2: m2's likelihood is bernoulli, expected gaussian"):
        M1M2(m1, M2((3,), 3, 2, (4,)), torch.arange(3))
    with pytest.raises(ValueError, match=r"M1M2: noise has shape \(1, 3\), expected \(1, 154\)"):
        M1M2.build(m1, torch.arange(4), 3).elbo(torch.rand(1, 5), torch.randn(1, 3))
    with pytest.raises(ValueError, match=r"M1\.mnist: preset is 'new'"):
        M1.mnist("new")

"""Reductions of Gaussian class scores over the classes, and the same of any scores."""

import math

import pytest
import torch
from backends import cpu_backends
from torch.autograd import gradcheck, gradgradcheck

from fastflow.ops import (
    class_marginal,
    gaussian_class_cross_entropy,
    gaussian_class_marginal,
    gaussian_class_posterior,
    gaussian_class_scores,
)
from fastflow.ops.gaussian_class_scores import _backward, _forward

backend = cpu_backends(_forward, _backward)


def _case(rows: int = 5, classes: int = 4, dtype: torch.dtype = torch.float64):
    z, means = torch.randn(rows, 6, dtype=dtype), torch.randn(classes, 6, dtype=dtype)
    return z, means, 0.3 * torch.randn(classes, 6, dtype=dtype), torch.randn(classes, dtype=dtype).log_softmax(0)


def test_marginal_sums_the_classes_out(backend):
    given = _case()
    scores = gaussian_class_scores(*given)
    labels = torch.tensor([0, -1, 3, -1, 2])
    expected = torch.stack([scores[0, 0], scores[1].logsumexp(0), scores[2, 3], scores[3].logsumexp(0), scores[4, 2]])
    assert torch.allclose(gaussian_class_marginal(*given, labels), expected)
    assert torch.allclose(gaussian_class_marginal(*given), scores.logsumexp(1))


def test_cross_entropy_and_posterior(backend):
    given = _case()
    scores, labels = gaussian_class_scores(*given), torch.tensor([0, -1, 3, -1, 2])
    own = gaussian_class_cross_entropy(*given, labels)
    expected = torch.nn.functional.cross_entropy(scores, labels, ignore_index=-1, reduction="none")
    assert torch.allclose(own, expected)
    assert torch.allclose(gaussian_class_posterior(*given), scores.softmax(1))


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(backend, labelled, weighted):
    given = [value.requires_grad_() for value in _case(rows=4)]
    labels = torch.tensor([0, -1, 3, -1]) if labelled else None
    weights = torch.rand(4, 4, dtype=torch.float64).requires_grad_() if weighted else None
    inputs = given + ([weights] if weighted else [])

    def marginal(*values):
        return gaussian_class_marginal(*values[:4], labels, *values[4:])

    assert gradcheck(marginal, inputs)
    assert gradgradcheck(marginal, inputs)
    assert gradcheck(lambda *values: gaussian_class_posterior(*values[:4]), given)
    if labelled:
        assert gradcheck(lambda *values: gaussian_class_cross_entropy(*values[:4], labels), given)


def test_one_class_and_no_row(backend):
    given = _case(rows=3, classes=1)
    assert torch.allclose(gaussian_class_marginal(*given), gaussian_class_scores(*given)[:, 0])
    assert torch.equal(gaussian_class_posterior(*given), torch.ones(3, 1, dtype=torch.float64))
    given = [value.requires_grad_() for value in _case(rows=0)]
    gaussian_class_marginal(*given, torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert torch.equal(given[1].grad, torch.zeros(4, 6, dtype=torch.float64))


def test_an_impossible_label_and_no_possible_class(backend):
    z, means, log_scales, _ = _case()
    log_prior = torch.tensor([0.0, -math.inf, -math.inf, -math.inf], dtype=torch.float64)
    labels = torch.tensor([1, 0, -1, -1, 0])
    marginal = gaussian_class_marginal(z, means, log_scales, log_prior, labels)
    assert marginal[0] == -math.inf
    assert marginal[1:].isfinite().all()
    none = torch.full((4,), -math.inf, dtype=torch.float64)
    assert torch.equal(gaussian_class_marginal(z, means, log_scales, none), torch.full((5,), -math.inf).double())


def test_many_classes_of_many_features_need_no_more_memory_than_a_block():
    """[B, K, D] would take 4 GB here, [B, K] scores 1 MB."""
    rows, classes, features = 64, 4000, 3072
    z, means = torch.randn(rows, features, requires_grad=True), torch.randn(classes, features)
    given = (means, torch.zeros(1, features), torch.zeros(classes))
    with torch.profiler.profile(profile_memory=True) as profile:
        marginal = gaussian_class_marginal(z, *given)
        marginal.sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest <= 2 * z.numel() * 4
    nearest = torch.cdist(z.detach()[:3], means).square().min(1).values
    assert torch.allclose(marginal[:3], -0.5 * nearest - 0.5 * features * math.log(2 * math.pi), atol=3.0)


def test_weights_serve_unlabelled_rows():
    scores = torch.randn(3, 4)
    weights = torch.rand(3, 4)
    expected = (weights * scores).sum(1)
    assert torch.allclose(class_marginal(scores, weights=weights), expected)
    labelled = class_marginal(scores, torch.tensor([-1, 2, -1]), weights)
    assert torch.allclose(labelled, torch.stack([expected[0], scores[1, 2], expected[2]]))


def test_weight_zero_silences_an_impossible_class():
    scores = torch.tensor([[0.5, -math.inf, 3.0]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    value = class_marginal(scores, weights=weights)
    assert value.item() == 0.5
    value.backward()
    assert torch.equal(scores.grad, torch.tensor([[1.0, 0.0, 0.0]]))
    assert torch.equal(weights.grad, torch.tensor([[0.5, 0.0, 3.0]]))


def test_em_step_has_the_gradient_of_the_marginal():
    """sum_k R_k G_k with R = softmax G held fixed: the identity behind EM (seed-systems 12.4)."""
    arguments = [value.requires_grad_() for value in _case()]
    labels = torch.tensor([1, -1, -1, 0, -1])
    responsibilities = gaussian_class_scores(*arguments).softmax(1).detach()
    step = gaussian_class_marginal(*arguments, labels, responsibilities)
    em = torch.autograd.grad(step.sum(), arguments)
    direct = torch.autograd.grad(gaussian_class_marginal(*arguments, labels).sum(), arguments)
    for gradient, expected in zip(em, direct, strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-10)


def test_class_marginal_gradients():
    scores = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(5, 3, dtype=torch.float64)
    labels = torch.tensor([0, -1, 2, -1, 1])
    assert gradcheck(lambda s: class_marginal(s, labels), (scores,))
    assert gradcheck(lambda s: class_marginal(s, labels, weights), (scores,))
    weights[1, 0] = 0
    weights.requires_grad_()
    assert gradcheck(lambda s, w: class_marginal(s, labels, w), (scores, weights))
    assert gradgradcheck(lambda s, w: class_marginal(s, labels, w), (scores, weights))


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    z, means, log_scales, log_prior = _case(rows=rows)
    labels = torch.zeros(rows, dtype=torch.int64)
    assert gaussian_class_scores(z, means, log_scales, log_prior).shape == (rows, 4)
    assert gaussian_class_marginal(z, means, log_scales, log_prior, labels).shape == (rows,)


@pytest.mark.parametrize(("labels", "error", "message"), [
    (torch.tensor([0, 1, 4]), ValueError, r"labels has the value 4, expected -1 to 3 \(-1: unlabelled\)"),
    (torch.tensor([0, -2, 1]), ValueError, "labels has the value -2, expected -1 to 3"),
    (torch.tensor([0, 1]), ValueError, r"labels has shape \(2,\), expected \(3,\)"),
    (torch.tensor([0.0, 1.0, 2.0]), TypeError, r"labels has dtype torch\.float32, expected an integer dtype"),
    ([0, 1, 2], TypeError, "labels is list"),
])
def test_bad_labels(labels, error, message):
    with pytest.raises(error, match=f"class_marginal: {message}"):
        class_marginal(torch.randn(3, 4), labels)


def test_bad_weights_and_no_class():
    with pytest.raises(ValueError, match=r"class_marginal: weights has shape \(3, 5\), expected \(3, 4\) like scores"):
        class_marginal(torch.randn(3, 4), weights=torch.rand(3, 5))
    with pytest.raises(ValueError, match=r"class_marginal: scores has shape \(3, 0\), .*at least one class"):
        class_marginal(torch.randn(3, 0))

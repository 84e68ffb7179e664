"""The bounds of labelled and unlabelled rows, from scores and a classifier."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastflow.models import ClassBound, class_bound, classification_weight
from fastflow.ops import class_cross_entropy


def _case(rows=6, classes=4):
    scores = 3 * torch.randn(rows, classes, dtype=torch.float64)
    return scores.requires_grad_(), torch.randn(rows, classes, dtype=torch.float64).requires_grad_()


def test_below_the_logsumexp_with_equality_at_the_posterior():
    scores, logits = _case()
    gap = scores.logsumexp(1) - class_bound(scores, logits.log_softmax(1))
    divergence = (logits.softmax(1) * (logits.log_softmax(1) - scores.log_softmax(1))).sum(1)
    assert (gap > 0.01).all()
    assert torch.allclose(gap, divergence, rtol=1e-10)  # KL(q || softmax G)
    assert torch.allclose(class_bound(scores, scores.log_softmax(1)), scores.logsumexp(1), rtol=1e-13)


def test_gradients():
    """dU/dG = q, dU/dlogits = q (G - log q - U), seed-systems 1.6; a labelled row moves G[y] alone."""
    scores, logits = _case()
    log_q = logits.log_softmax(1)
    bound = class_bound(scores, log_q)
    of_scores, of_logits = torch.autograd.grad(bound.sum(), (scores, logits))
    q = log_q.exp()
    assert torch.allclose(of_scores, q, rtol=1e-12)
    assert torch.allclose(of_logits, q * (scores - log_q - bound[:, None]), rtol=1e-9, atol=1e-12)
    labels = torch.tensor([2, -1, 0, -1, 3, 1])

    def both(scores, logits):
        return class_bound(scores, logits.log_softmax(1), labels)

    assert gradcheck(both, (scores, logits))
    assert gradgradcheck(both, (scores, logits))
    of_scores, of_logits = torch.autograd.grad(both(scores, logits).sum(), (scores, logits))
    assert torch.equal(of_scores[0], torch.eye(4, dtype=torch.float64)[2])
    assert not of_logits[labels >= 0].any()
    assert of_logits[1].any()


def test_labels_choose():
    scores, logits = _case(4)
    log_q, labels = logits.log_softmax(1), torch.tensor([1, -1, 3, -1])
    bound, unlabelled = class_bound(scores, log_q, labels), class_bound(scores, log_q)
    assert torch.equal(bound[[0, 2]], scores[[0, 2], [1, 3]])
    assert torch.allclose(bound[[1, 3]], unlabelled[[1, 3]], rtol=1e-14)


def test_a_certain_classifier():
    """q of 0 in float32, as a number or as logits: the class does not count, and no gradient is NaN."""
    scores = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    assert class_bound(scores, torch.tensor([[0.0, -math.inf, -math.inf]])).tolist() == [1.0]
    logits = torch.tensor([[0.0, 500.0, -500.0]], requires_grad=True)
    bound = class_bound(scores, logits.log_softmax(1))
    bound.sum().backward()
    assert bound.tolist() == [2.0]
    assert scores.grad.tolist() == [[0.0, 1.0, 0.0]]
    assert logits.grad.isfinite().all()


class _Given(ClassBound):
    """Scores and logits that are its parameters."""

    shape, features, classes, noise_features = (2,), 2, 3, 0

    def __init__(self, rows):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.randn(rows, 3, dtype=torch.float64))
        self.logits = torch.nn.Parameter(torch.randn(rows, 3, dtype=torch.float64))

    def class_terms(self, x, noise=None):
        return self.scores, self.log_q(x)

    def log_q(self, x):
        return self.logits.log_softmax(1)

    def log_base(self, x, noise=None):
        return x.sum(1)


def test_what_follows_from_the_terms():
    model, x, noise = _Given(4), torch.randn(4, 2, dtype=torch.float64), torch.zeros(4, 0)
    labels = torch.tensor([0, -1, 2, -1])
    bound, cross_entropy = model.training_terms(x, noise, labels)
    assert torch.equal(bound, class_bound(model.scores, model.log_q(x), labels))
    assert torch.allclose(cross_entropy[[0, 2]], -model.log_q(x)[[0, 2], [0, 2]], rtol=1e-12)
    assert cross_entropy[[1, 3]].tolist() == [0.0, 0.0]
    assert torch.equal(model.elbo(x, noise, labels), x.sum(1) + bound)
    log_base, scores = model.class_scores(x, noise)
    assert torch.equal(log_base, x.sum(1))
    assert torch.equal(scores, model.scores)
    assert torch.equal(model.predict(x), model.logits.argmax(1))
    assert torch.allclose(model.predict_proba(x), model.logits.softmax(1))
    assert torch.allclose(model.bits_per_dim_bound(x, noise), -model.elbo(x, noise) / (2 * math.log(2)))


def test_the_objective():
    """The terms, summed with the weight, are J^alpha of eq. 9: alpha 0.1 N of the labelled rows' mean -log q(y | x)."""
    model, rows, labelled = _Given(10), 10, 4
    labels = torch.tensor([0, 1, 2, 0] + [-1] * 6)
    scores, log_q = model.scores, model.log_q(None)
    bound, cross_entropy = model.training_terms(torch.zeros(10, 2), torch.zeros(10, 0), labels)
    own = -bound.sum() + classification_weight(rows, labelled) * cross_entropy.sum()
    supervised = scores[range(4), labels[:4]].sum()
    unsupervised = (log_q[4:].exp() * (scores[4:] - log_q[4:])).sum()
    mean_of_labelled = -log_q[range(4), labels[:4]].mean()
    assert torch.allclose(own, -supervised - unsupervised + 0.1 * rows * mean_of_labelled, rtol=1e-12)
    assert torch.allclose(cross_entropy, class_cross_entropy(log_q, labels))


def test_classification_weight():
    assert classification_weight(50_000, 100) == 50.0
    assert classification_weight(50_000, 0) == 0.0
    with pytest.raises(ValueError, match="labelled is 3, expected 0 to rows = 2"):
        classification_weight(2, 3)

"""FlowGMM-cons: the hard and the squared consistency term, its ramp, and the weights of FlowGMM's objective."""

import pytest
import torch
from flowgmm_cases import points, small_toy

from fastflow.training.config import LossConfig
from fastflow.training.consistency import consistency_loss, ramped
from fastflow.training.loss import likelihood_loss

LOG_BASE = torch.tensor([0.5, -1.0, 2.0])
SCORES = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.3, 0.2]])
OTHER = torch.tensor([[3.0, 0.0], [0.1, 0.0], [-2.0, 2.0]])
LOG_PRIOR = torch.tensor([0.25, 0.75]).log()


def test_hard_term_is_the_likelihood_of_the_other_views_class():
    loss, parts = consistency_loss(LOG_BASE, SCORES, LOG_PRIOR, OTHER)
    expected = [0.5 + 0.0 - LOG_PRIOR[0], -1.0 + 2.0 - LOG_PRIOR[0], 2.0 + 0.2 - LOG_PRIOR[1]]
    assert torch.allclose(loss, -torch.stack(expected).mean())
    assert torch.equal(parts["consistency"], loss)
    assert parts["agreement"].item() == pytest.approx(1 / 3)


def test_rows_below_the_threshold_count_nothing():
    loss, _ = consistency_loss(LOG_BASE, SCORES, LOG_PRIOR, OTHER, threshold=0.9)
    assert torch.allclose(loss, -(0.5 - LOG_PRIOR[0] + 2.2 - LOG_PRIOR[1]) / 3)


def test_squared_term():
    loss, _ = consistency_loss(LOG_BASE, SCORES, LOG_PRIOR, OTHER, kind="mse")
    assert torch.allclose(loss, (SCORES.softmax(1) - OTHER.softmax(1)).square().sum(1).mean())
    assert consistency_loss(LOG_BASE, SCORES, LOG_PRIOR, SCORES, kind="mse")[0] == 0


@pytest.mark.parametrize("kind", ["hard", "mse"])
def test_gradient_goes_through_one_view_alone(kind):
    model, x = small_toy(), points(8).requires_grad_()
    other = (points(8) + 0.01).requires_grad_()
    other_scores, log_prior = model.class_scores(other)[1], model.head.prior.log_prob()
    consistency_loss(*model.class_scores(x), log_prior, other_scores, kind=kind)[0].backward()
    assert x.grad.abs().sum() > 0
    assert other.grad is None


def test_hard_term_is_the_density_of_x_given_the_class():
    """-log p(x' | k), Jacobian included, whatever p(y)."""
    model, x = small_toy(prior=[0.6, 0.3, 0.1]), points(8)
    log_base, scores = model.class_scores(x)
    loss, _ = consistency_loss(log_base, scores, model.head.prior.log_prob(), scores)
    guess, z, log_det = scores.argmax(1), *model.trunk(x)
    normal = torch.distributions.Normal(model.head.means[guess], 1.0).log_prob(z).sum(1)
    assert torch.allclose(loss, -(normal + log_det).mean(), rtol=1e-5)


def test_joint_likelihood_is_the_marginal_and_a_cross_entropy():
    """seed-systems 12.7: marginal on all rows and weight B_l / B for cross-entropy; a weight w there is
    classification = w - B_l / B here."""
    log_base, scores, labels = torch.randn(8), torch.randn(8, 3), torch.tensor([0, 2, -1, -1, 1, -1, -1, -1])
    marginal, known = -(log_base + scores.logsumexp(1)).mean(), labels >= 0
    cross_entropy = torch.nn.functional.cross_entropy(scores[known], labels[known])
    joint, _ = likelihood_loss(log_base, scores, labels, LossConfig())
    assert torch.allclose(joint, marginal + 3 / 8 * cross_entropy)
    published, _ = likelihood_loss(log_base, scores, labels, LossConfig(classification=3 - 3 / 8))
    assert torch.allclose(published, marginal + 3 * cross_entropy)


def test_ramp():
    assert [ramped(2.0, step, 4) for step in (0, 1, 3, 4, 100)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert ramped(2.0, 0, 0) == 2.0


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'kl', expected one of hard, mse"):
        consistency_loss(LOG_BASE, SCORES, LOG_PRIOR, OTHER, kind="kl")

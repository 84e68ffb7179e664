"""What a step minimises: EM against the marginal, bounds against sums over the training set, consistency."""

import numpy as np
import pytest
import torch
from systems import SYSTEMS

from fastflow.training.batches import Batches
from fastflow.training.build import load_data, split
from fastflow.training.config_file import parse_config
from fastflow.training.em import HELD
from fastflow.training.loop import take_step
from fastflow.training.objectives import bound, likelihood
from fastflow.training.start import initialize, start_model
from fastflow.training.state import TrainingState

CPU = torch.device("cpu")


def begin(name: str, **changes):
    """State, batches and configuration of a system before its first step, in float64."""
    torch.manual_seed(0)
    config = parse_config(SYSTEMS[name] | changes, "config")
    data = load_data(config.data)
    batches = Batches(data, split(data, config.data, 0), config, 0, CPU)
    model = start_model(config, data, 0)
    initialize(model, config.model, batches)
    return TrainingState(model.double(), config.optimizer), batches, config


def gradients(state, loss):
    return torch.autograd.grad(loss, list(state.model.parameters()), allow_unused=True)


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_first_m_step_is_a_step_on_the_marginal():
    state, batches, config = begin("scnf with em over batches")
    batch = batches(0)
    assert (batch.labels >= 0).any()
    assert (batch.labels < 0).any()
    of_em = gradients(state, likelihood(state, batch, config)[0])
    plain = config.model_copy(update={"loss": config.loss.model_copy(update={"em_steps": 1})})
    assert_same(of_em, gradients(state, likelihood(state, batch, plain)[0]))


def test_responsibilities_are_held_for_the_steps_of_a_batch():
    state, batches, config = begin("scnf with em over batches")
    held, rows = [], []
    for step in range(6):
        batch = batches(state.step)
        expected = state.model.class_scores(batch.x)[1].softmax(1).detach() if step % 3 == 0 else held[-1]
        take_step(state, batch, config)
        held.append(state.held[HELD])
        rows.append(batch.rows)
        torch.testing.assert_close(held[-1], expected)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[2], rows[3])
    batch, plain = batches(5), config.model_copy(update={"loss": config.loss.model_copy(update={"em_steps": 1})})
    state.step = 5
    later, now = (gradients(state, likelihood(state, batch, each)[0]) for each in (config, plain))
    assert not torch.equal(later[0], now[0])


def test_the_marginal_does_not_fall_over_a_cycle_of_em():
    state, batches, config = begin("scnf with em over batches", optimizer={"lr": 1e-3}, schedule={"name": "constant"},
                                   sampling={"batch": 64, "labelled": 0})
    first, batch = state.model.log_prob(batches(0).x).mean().item(), batches(0)
    for _ in range(3):
        take_step(state, batches(state.step), config)
    assert state.model.log_prob(batch.x).mean().item() > first


def test_responsibilities_of_an_epoch_are_of_all_rows():
    state, batches, config = begin("scnf with em over epochs", sampling={"batch": 50})
    assert len(batches.x) // 50 == 2
    expected = state.model.predict_proba(batches.x).detach()
    for step in range(3):
        take_step(state, batches(state.step), config)
        if step < 2:
            torch.testing.assert_close(state.held[HELD], expected)
    assert not torch.allclose(state.held[HELD], expected)


def test_the_bound_is_a_sum_over_the_training_set():
    """A batch that holds every row once, as many labelled ones as are expected: no chance is left."""
    state, batches, config = begin("m2 of vectors")
    rows = np.concatenate([batches.split.labelled, batches.split.unlabelled])
    batches.share, batches.size = len(batches.split.labelled) / len(rows), len(rows)
    batches.rows, batches._places = lambda step: rows, torch.arange(len(rows))
    batch = batches(0)
    loss, _ = bound(state, batch, config)
    model, known = state.model, batch.labels >= 0
    noise = torch.special.ndtri(batch.uniform((len(rows), model.noise_features), 10).double() + 2.0**-25).float()
    elbo = model.elbo(batch.x, noise, batch.labels).sum()
    cross_entropy = -model.log_q(batch.x)[known].gather(1, batch.labels[known, None]).sum()
    alpha = 0.1 * len(rows) / known.sum()
    expected = (alpha * cross_entropy - elbo + model.weight_penalty()) / len(rows)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", ["m1 of vectors", "m2 of vectors"])
def test_the_bound_has_no_bias(name):
    """Batches of 16 rows drawn with replacement have the mean of the whole sum, whatever share is labelled."""
    state, batches, config = begin(name)
    losses = torch.stack([bound(state, batches(step), config)[0].detach() for step in range(600)])
    rows = np.concatenate([batches.split.labelled, batches.split.unlabelled])
    labels, model = batches.labels[rows], state.model
    sums = []
    for _ in range(200):
        noise = torch.randn(len(rows), model.noise_features, dtype=torch.float64)
        bounds, cross_entropy = model.training_terms(batches.x[rows], noise, labels)
        alpha = 0.1 * len(rows) / max(1, int((labels >= 0).sum()))
        sums.append((alpha * cross_entropy.sum() - bounds.sum() + model.weight_penalty()).detach() / len(rows))
    sums = torch.stack(sums)
    error = (losses.var() / len(losses) + sums.var() / len(sums)).sqrt()
    assert abs(losses.mean() - sums.mean()) < 4 * error


def test_consistency_looks_at_another_augmentation():
    state, batches, config = begin("flowgmm of images")
    batch = batches(0)
    assert not torch.equal(batch.x, batch.other)
    assert not torch.equal(batch.noise, batch.other_noise)
    assert torch.equal(batch.x, batches(0).x)
    loss, parts = likelihood(state, batch, config)
    without = config.model_copy(update={"loss": config.loss.model_copy(update={"consistency": 0.0})})
    plain, _ = likelihood(state, batch, without)
    torch.testing.assert_close(loss, plain + parts["consistency"] / 3)  # the first of three steps of the ramp

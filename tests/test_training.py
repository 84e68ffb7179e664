"""The parts of the trainer: loss, batches, schedules, optimiser groups, average, evaluation."""

import math

import numpy as np
import pytest
import torch
from tiny_flow import SMALL, TinyFlow

from fastflow.data import ImageData, Split, moons
from fastflow.training.batches import Batches
from fastflow.training.config import LossConfig, OptimizerConfig, ScheduleConfig, ViewConfig
from fastflow.training.config_file import parse_config
from fastflow.training.evaluate import evaluate
from fastflow.training.loss import likelihood_loss, view_loss
from fastflow.training.optimizer import WeightAverage, build_optimizer, lr_factor
from fastflow.training.randomness import VIEW, uniform
from fastflow.training.state import TrainingState
from fastflow.training.train import flushed_denormals
from fastflow.training.views import affine_views, noisy_views, normal_numbers

CPU = torch.device("cpu")


def make_data(rows=60, classes=3, levels=4, size=(1, 4, 4)):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(rows) % classes
    images = torch.randint(0, levels - 1, (rows, *size), generator=generator, dtype=torch.uint8)
    images[:, 0, 0, :classes] += torch.nn.functional.one_hot(labels).to(torch.uint8)
    return ImageData("made", levels, classes, images, labels, images[:30], labels[:30])


def make_batches(seed=0, split=None, loss=None, data=None, **sampling):
    split = split or Split(np.arange(6), np.arange(6, 50), np.arange(50, 60))
    config = SMALL | {"sampling": {"batch": 16} | sampling, "loss": loss or {}}
    return Batches(data or make_data(), split, parse_config(config, "config"), seed, CPU)


def test_loss_is_the_weighted_likelihood_and_cross_entropy():
    log_base, scores = torch.randn(6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([2, -1, 0, -1, -1, 3])
    total, weight, cross_entropy = 0.0, 0.0, 0.0
    for base, row, label in zip(log_base.tolist(), scores.tolist(), labels.tolist(), strict=True):
        evidence = math.log(sum(math.exp(score) for score in row))
        if label >= 0:
            total, weight = total - 3.0 * (base + row[label]), weight + 3.0
            cross_entropy += (evidence - row[label]) / 3
        else:
            total, weight = total - (base + evidence), weight + 1.0
    loss, parts = likelihood_loss(log_base, scores, labels, LossConfig(labelled=3.0, classification=0.7))
    assert loss.item() == pytest.approx(total / weight + 0.7 * cross_entropy, rel=1e-12)
    assert parts["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-12)


@pytest.mark.parametrize(("labels", "labelled"), [([-1, -1], 1.0), ([1, 0], 1.0), ([1, 0], 0.0)])
def test_loss_without_labelled_or_unlabelled_rows_is_finite(labels, labelled):
    scores, config = torch.randn(2, 3, requires_grad=True), LossConfig(labelled=labelled, classification=1.0)
    loss, parts = likelihood_loss(torch.zeros(2), scores, torch.tensor(labels), config)
    assert loss.isfinite()
    loss.backward()
    assert scores.grad.isfinite().all()
    assert all(part.isfinite() for part in parts.values())


def test_loss_without_classes_is_the_likelihood_alone():
    log_base, scores = torch.randn(4), torch.randn(4, 1)
    loss, parts = likelihood_loss(log_base, scores, torch.full((4,), -1), LossConfig())
    torch.testing.assert_close(loss, -(log_base + scores[:, 0]).mean())
    assert parts == {"nll_unlabelled": loss}


def test_gradient_of_the_loss_is_the_responsibilities():
    scores = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([-1, 2, -1, 0, -1])
    likelihood_loss(torch.zeros(5), scores, labels, LossConfig())[0].backward()
    expected = torch.where((labels < 0)[:, None], scores.softmax(1), torch.eye(4)[labels.clamp(min=0)].double())
    torch.testing.assert_close(scores.grad, -expected / 5)


def test_batches_are_a_function_of_seed_and_step():
    first, again, other = make_batches(), make_batches(), make_batches(seed=1)
    for step in (0, 7):
        a, b = first(step), again(step)
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("x", "labels", "noise"))
    assert not torch.equal(first(0).noise, first(1).noise)
    assert not np.array_equal(first.rows(0), first.rows(1))
    assert not np.array_equal(first.rows(0), other.rows(0))


def test_a_third_of_the_rows_is_labelled_and_monitored_rows_never_come():
    batches = make_batches(batch=256)
    rows = np.concatenate([batches.rows(step) for step in range(100)])
    labelled = (rows < 6).mean()
    assert abs(labelled - 1 / 3) < 4 * math.sqrt(2 / 9 / len(rows))
    assert rows.max() < 50
    counts = np.bincount(rows, minlength=50)
    assert abs(counts[:6] / len(rows) - 1 / 18).max() < 0.01
    assert abs(counts[6:] / len(rows) - 2 / 3 / 44).max() < 0.005
    batch = batches(0)
    assert ((batch.labels >= 0) == torch.from_numpy(batches.rows(0) < 6)).all()


def test_batches_without_labels_and_with_labels_only():
    nothing, everything = np.arange(0), np.arange(60)
    assert (make_batches(split=Split(nothing, everything, nothing))(0).labels == -1).all()
    assert (make_batches(split=Split(everything, nothing, nothing))(0).labels >= 0).all()
    with pytest.raises(ValueError, match="no row has weight"):
        make_batches(split=Split(everything, nothing, nothing), labelled=0.0)
    with pytest.raises(ValueError, match=r"loss.labelled is 0.0, expected more: every row is labelled"):
        make_batches(split=Split(everything, nothing, nothing), loss={"labelled": 0.0})
    make_batches(split=Split(everything, nothing, nothing), loss={"labelled": 0.0, "classification": 1.0})


def test_views_move_images_by_keyed_normal_numbers():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 3, 5] = 7
    still, shift = ViewConfig(rotation=0, shear=0, shift=0, zoom=0), ViewConfig(rotation=0, shear=0, shift=1, zoom=0)
    numbers = torch.tensor([[1.0, 1.0, -2.0, 1.0, 1.0, 1.0]])
    assert torch.equal(affine_views(image, numbers, still, levels=8), image)
    moved = affine_views(image, numbers, shift, levels=8)
    assert moved.nonzero().tolist() == [[0, 0, 2, 7]]
    quarter = affine_views(image, torch.tensor([[1.0, 0, 0, 0, 0, 0]]), ViewConfig(rotation=90), levels=8)
    assert torch.equal(quarter, image.rot90(1, (2, 3))) or torch.equal(quarter, image.rot90(-1, (2, 3)))
    draws = normal_numbers(uniform((20000, 2), seed=0, stream=VIEW, step=0, rows=torch.arange(20000)))
    assert abs(draws.mean()) < 0.02
    assert abs(draws.std() - 1) < 0.02
    assert normal_numbers(torch.tensor([0.0, 1 - 2.0**-24])).isfinite().all()


def test_batches_have_views_where_the_loss_uses_them():
    assert make_batches()(0).views is None
    batches = make_batches(loss={"view": 1.0})
    batch, again = batches(3), make_batches(loss={"view": 1.0})(3)
    assert batch.views.dtype == torch.uint8
    assert batch.views.shape == batch.x.shape
    assert not torch.equal(batch.views, batch.x)
    assert torch.equal(batch.views, again.views)
    assert torch.equal(batch.x, make_batches()(3).x)
    assert not torch.equal(batch.noise, batch.view_noise)


def test_views_of_vectors_are_the_vectors_with_noise():
    vectors, draws = torch.ones(20000, 2), torch.rand(20000, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noisy_views(vectors, draws, ViewConfig(noise=0)), vectors)
    noise = noisy_views(vectors, draws, ViewConfig(noise=0.25)) - 1
    torch.testing.assert_close(noise, 0.25 * normal_numbers(draws), atol=1e-6, rtol=0)
    batch, again = (make_batches(data=moons(train=60), loss={"pseudo": 1.0})(3) for _ in range(2))
    assert (batch.views - batch.x).std().item() == pytest.approx(0.1, rel=0.5)
    assert torch.equal(batch.views, again.views)
    assert (batch.noise, batch.view_noise) == (None, None)


def test_view_loss_is_cross_entropy_with_labels_and_sure_guesses():
    scores = torch.tensor([[9.0, 0, 0], [0, 5, 0], [0.5, 0, 0.1], [0, 0, 4], [0, 0, 0]], requires_grad=True)
    views = torch.randn(5, 3, requires_grad=True)
    labels = torch.tensor([1, -1, -1, -1, 2])
    config = LossConfig(view=2.0, pseudo=3.0, pseudo_threshold=0.9, pseudo_start=10, pseudo_ramp=4)
    labelled = torch.nn.functional.cross_entropy(views[[0, 4]], torch.tensor([1, 2]))
    guessed = torch.nn.functional.cross_entropy(views[[1, 3]], torch.tensor([1, 2]), reduction="sum") / 3
    for step, growth in ((9, 0.0), (10, 0.0), (11, 0.25), (14, 1.0), (99, 1.0)):
        loss, parts = view_loss(scores, views, labels, config, step)
        torch.testing.assert_close(loss, 2 * labelled + growth * 3 * guessed)
        assert parts["pseudo_share"].item() == pytest.approx(2 / 3)
    loss.backward()
    assert scores.grad is None
    at_once = view_loss(scores, views, labels, LossConfig(pseudo=1.0, pseudo_start=5), 5)[0]
    torch.testing.assert_close(at_once, guessed)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(name="constant"), [1, 1, 1, 1, 1]),
        (ScheduleConfig(name="linear"), [1, 0.8, 0.6, 0.4, 0.2]),
        (ScheduleConfig(name="hat", warmup=2), [0.5, 1, 1, 2 / 3, 1 / 3]),
        (ScheduleConfig(name="hat", warmup=10), [0.1, 0.2, 0.3, 0.4, 0.5]),
        (ScheduleConfig(name="cosine", warmup=1), [1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_schedules(config, expected):
    assert [lr_factor(config, step, 5) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adamax", "adamw"])
def test_weight_decay_leaves_all_but_matrices_alone(name):
    model = TinyFlow(4, 16, 3)
    groups = build_optimizer(model, OptimizerConfig(name=name, weight_decay=0.1)).param_groups
    decayed = [parameter for group in groups if group["weight_decay"] for parameter in group["params"]]
    assert [id(parameter) for parameter in decayed] == [id(model.means.weight)]
    everything = build_optimizer(model, OptimizerConfig(name=name, weight_decay=0.1, decay_all=True)).param_groups
    assert sum(len(group["params"]) for group in everything if group["weight_decay"]) == 3


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("head_lr", [None, 0.5])
def test_the_head_may_have_another_step_and_keeps_its_decay(head_lr, decay_all):
    model = torch.nn.ModuleDict({"trunk": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1, head_lr=head_lr, weight_decay=0.3, decay_all=decay_all))
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert groups[parameter]["base_lr"] == (head_lr if head_lr and name.startswith("head") else 0.1)
        assert groups[parameter]["weight_decay"] == (0.3 if decay_all or name.endswith("weight") else 0.0)


def test_average_follows_weights_and_buffers():
    model = torch.nn.BatchNorm1d(1, affine=True)
    average = WeightAverage(model, decay=0.5)
    model.weight.data.fill_(3.0)
    model.running_mean.fill_(7.0)
    average.update(step=0)
    assert average.model.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 3)
    assert average.model.running_mean.item() == pytest.approx(0.9 * 7)  # of these weights, not of the latest
    model.num_batches_tracked.fill_(3)
    average.update(step=100)
    assert average.model.num_batches_tracked.item() == 3
    assert average.model.weight.item() == pytest.approx(0.5 * 2.8 + 0.5 * 3)


def advance(state, steps):
    for _ in range(steps):
        torch.manual_seed(state.step)
        state.optimizer.zero_grad()
        state.model.class_scores(torch.randint(0, 4, (8, 1, 4, 4)))[1].sum().backward()
        state.optimizer.step()
        state.average.update(state.step)
        state.add({"loss": torch.tensor(float(state.step))})
        state.step += 1
    return state.tensors()


def copy_of(parts):
    return {part: {key: value.clone() for key, value in tensors.items()} for part, tensors in parts.items()}


@pytest.mark.parametrize("name", ["adamax", "adamw"])
def test_state_goes_on_bit_for_bit(name):
    config = OptimizerConfig(name=name, ema=0.9, weight_decay=0.1)
    state, copy = TrainingState(TinyFlow(4, 16, 3), config), TrainingState(TinyFlow(4, 16, 3), config)
    copy.load(3, copy_of(advance(state, 3)))
    whole, resumed = advance(state, 2), advance(copy, 2)
    assert set(whole) == {"model", "average", "trainer"}
    for part, tensors in whole.items():
        assert tensors.keys() == resumed[part].keys()
        assert all(torch.equal(value, resumed[part][key]) for key, value in tensors.items())


def test_weights_of_another_model_are_refused():
    state, other = (TrainingState(TinyFlow(4, features, 3), OptimizerConfig()) for features in (9, 16))
    with pytest.raises(ValueError, match=r"checkpoint: shift is \(16,\), expected \(9,\)"):
        state.load(0, other.tensors())


def test_evaluation_matches_its_definition_and_repeats():
    data, model = make_data(rows=700), TinyFlow(4, 16, 3)
    model.train()
    images, labels = data.train_images, data.train_labels
    figures = evaluate(model, images, labels, levels=4, seed=5)
    assert model.training
    assert evaluate(model, images, labels, levels=4, seed=5) == figures
    confusion = torch.tensor(figures["confusion"])
    assert confusion.sum() == 700
    assert confusion.sum(1).tolist() == torch.bincount(labels).tolist()
    assert figures["error"] == pytest.approx(100 * (1 - confusion.diag().sum().item() / 700))
    other = evaluate(model, images, labels, levels=4, seed=6)
    assert other["confusion"] == figures["confusion"]
    assert 0 < abs(other["bits_per_dim"] - figures["bits_per_dim"]) < 0.05
    predicted = model.eval().class_scores(images)[1].argmax(1)
    assert (predicted != labels).sum().item() == round(7 * figures["error"])


def test_figures_of_the_uniform_density():
    class Uniform(torch.nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.classes = classes

        def class_scores(self, x, noise=None):
            return torch.zeros(len(x)), torch.full((len(x), self.classes), -math.log(self.classes))

    images, labels = torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
    figures = evaluate(Uniform(4), images, labels, levels=8, seed=0)
    assert figures["bits_per_dim"] == pytest.approx(3.0)
    assert figures["cross_entropy"] == pytest.approx(math.log(4))
    assert figures["error"] == 0.0
    assert evaluate(Uniform(1), images, labels, levels=8, seed=0) == {"bits_per_dim": pytest.approx(3.0)}


def test_denormal_numbers_are_flushed_in_training_alone():
    tiny = torch.tensor([1e-310], dtype=torch.float64)
    for _ in range(2):
        with flushed_denormals():
            assert (tiny * 1.0).item() == 0.0
        assert (tiny * 1.0).item() > 0.0

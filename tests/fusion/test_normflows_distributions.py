"""Base distributions of normflows, fused, against the originals."""

import copy

import pytest
import torch
from agreement import assert_agrees, assert_keeps, perturbed
from bijection_checks import (
    assert_compiles,
    assert_float32_under_autocast,
    assert_same_draws,
    assert_transforms,
    log_prob,
)
from oracles import relayout
from peers import normflows
from torch import nn

from fastflow.fusion import fuse

ROWS = (0, 1, 17)


def mixture(classes=3, features=5, trainable=True):
    means = torch.randn(classes, features).numpy()
    return perturbed(normflows.distributions.GaussianMixture(classes, features, means, trainable=trainable)).float()


def gaussian(shape=(5,), trainable=True):
    return perturbed(normflows.distributions.DiagGaussian(shape, trainable))


def class_gaussian(shape=(5,), classes=4):
    return perturbed(normflows.distributions.ClassCondDiagGaussian(shape, classes))


@pytest.mark.parametrize(("rows", "classes", "features"), [(0, 3, 2), (1, 3, 2), (17, 1, 1), (64, 3, 2), (64, 40, 7)])
@pytest.mark.parametrize("trainable", [True, False])
def test_mixture_log_prob(classes, features, trainable, rows):
    assert_agrees(mixture(classes, features, trainable), log_prob, torch.randn(rows, features))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", [5, (4, 3, 2)])
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_gaussian_log_prob(shape, temperature, rows):
    module = gaussian(shape)
    module.temperature = temperature
    assert_agrees(module, log_prob, torch.randn(rows, *module.shape))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", [5, (4, 3, 2)])
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_class_gaussian_log_prob(shape, temperature, rows):
    module = class_gaussian(shape)
    module.temperature = temperature
    assert_agrees(module, log_prob, torch.randn(rows, *module.shape), torch.randint(4, (rows,)))


def test_classes_given_by_weights_are_the_originals():
    assert_agrees(class_gaussian(), log_prob, torch.randn(17, 5), torch.rand(17, 4))


def test_a_shape_that_broadcasts_is_the_originals():
    assert_agrees(gaussian((4, 1)), log_prob, torch.randn(17, 4, 3))


@pytest.mark.parametrize("layout", ["strided", "transposed"])
def test_layouts(layout):
    assert_agrees(mixture(), log_prob, relayout(torch.randn(17, 5), layout))
    assert_agrees(gaussian(), log_prob, relayout(torch.randn(17, 5), layout))


@pytest.mark.parametrize("make", [mixture, gaussian, class_gaussian])
def test_samples_are_those_of_the_seed(make):
    original = make()
    fused = fuse(copy.deepcopy(original))
    assert_same_draws(fused, original, lambda m: (m(9)[0], m.sample(6)), rtol=0, atol=0)

    def density_and_gradients(module):
        z, log_p = module(9)
        z.square().sum().backward()
        return log_p, [each.grad for each in module.parameters()]

    assert_same_draws(fused, original, density_and_gradients)


@pytest.mark.parametrize("make", [mixture, gaussian])
def test_keeps(make):
    assert_keeps(make(), log_prob, torch.randn(17, 5))
    assert_keeps(make(trainable=False), log_prob, torch.randn(17, 5))


def test_class_gaussian_keeps():
    assert_keeps(class_gaussian(), log_prob, torch.randn(17, 5), torch.randint(4, (17,)))


@pytest.mark.parametrize("make", [mixture, gaussian])
def test_transforms_and_compile(make):
    original, x = make(), torch.randn(6, 5)
    assert_transforms(original, log_prob, x)
    assert_compiles(original, log_prob, x)
    torch.testing.assert_close(*(torch.func.vmap(torch.func.grad(lambda row, m=m: m.log_prob(row[None])[0]))(x)
                                 for m in (fuse(copy.deepcopy(original)), original)))


def test_class_gaussian_compiles():
    assert_compiles(class_gaussian(), log_prob, torch.randn(6, 5), torch.randint(4, (6,)))


def test_parameters_of_another_dtype_decide_the_results():
    original = normflows.distributions.GaussianMixture(3, 5)  # float64, as the library leaves it
    fused = fuse(copy.deepcopy(original))
    x = torch.randn(6, 5)
    assert fused.log_prob(x).dtype == torch.float64
    torch.testing.assert_close(fused.log_prob(x), original.log_prob(x))


@pytest.mark.parametrize("make", [mixture, gaussian])
def test_autocast(make):
    assert_float32_under_autocast(make(), log_prob, torch.randn(6, 5))


def test_parameters_that_are_not_numbers_give_none():
    fused = fuse(mixture())
    nn.init.constant_(fused.loc, float("nan"))
    assert fused.log_prob(torch.randn(6, 5)).isnan().all()


def test_labels_out_of_range_are_refused():
    fused = fuse(class_gaussian())
    for label in (-1, 4):
        with pytest.raises(ValueError, match=f"y has the value {label}, expected 0 to 3"):
            fused.log_prob(torch.randn(2, 5), torch.tensor([0, label]))

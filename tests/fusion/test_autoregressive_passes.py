"""When autoregressive layers take passes of the whole network, and which are left."""

import copy
import logging
from functools import partial

import pytest
import torch
from agreement import assert_agrees, perturbed
from autoregressive_cases import (
    CASES,
    NFLOWS,
    D,
    forward,
    given,
    inverse,
    layer,
    nflows_layer,
    normflows_layer,
    zuko_layer,
)
from peers import zuko
from torch import nn

from fastflow.fusion import fuse
from fastflow.fusion.swap import survey


@pytest.mark.parametrize("make", [nflows_layer, normflows_layer])
@pytest.mark.parametrize("option", [{"dropout_probability": 0.5}, {"use_batch_norm": True}])
def test_a_network_that_varies_takes_passes(option, make, by_stages):
    """Dropout draws in each pass, and batch norm takes the statistics of each."""
    original, z = perturbed(make(**option), 0.3).train(), torch.randn(17, D)
    fused, results = fuse(copy.deepcopy(original)), []
    for module in (original, fused):
        torch.manual_seed(2)
        results.append((*module.inverse(z), *module.state_dict().values()))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(fused.eval().inverse(z), original.eval().inverse(z))


@pytest.mark.parametrize("make", [
    partial(nflows_layer, activation=torch.sin), partial(nflows_layer, activation=nn.ReLU(inplace=True)),
    partial(normflows_layer, activation=lambda x: x.relu()), partial(zuko_layer, activation=nn.PReLU),
    partial(zuko_layer, activation=nn.Softsign)])
def test_other_activations_take_passes_and_say_so(make, caplog):
    original = perturbed(make(), 0.1)
    with caplog.at_level(logging.INFO, "fastflow"):
        assert fuse(copy.deepcopy(original))._fused_plan is None
    assert "takes passes of its whole network, as before: its activation" in caplog.text
    assert_agrees(original, forward, torch.randn(257, D))
    assert_agrees(original, inverse, torch.randn(257, D))


@pytest.mark.parametrize(("name", "part"), [
    ("nflows", "autoregressive_net.blocks.0.linear_layers.1"), ("normflows", "autoregressive_net"), ("zuko", "hyper.1"),
    ("zuko", "hyper")])
def test_hooks_in_the_network_are_called_as_before(name, part, by_stages):
    original, calls = layer(name), []
    original.get_submodule(part).register_forward_hook(lambda *_: calls.append(part))
    z = given(name)[0]
    for module in (original, fuse(copy.deepcopy(original))):
        inverse(module, z)
        calls.append("")
    assert len(calls) % 2 == 0
    assert calls[:len(calls) // 2] == calls[len(calls) // 2:]


def test_a_hook_of_later(by_stages):
    fused, calls = fuse(layer("nflows")), []
    fused.autoregressive_net.final_layer.register_forward_hook(lambda *_: calls.append(1))
    fused.inverse(*given("nflows"))
    assert len(calls) == D


def test_other_masks_are_loaded(by_stages):
    make = CASES["nflows random masks"][0]
    fused, other = (nn.Sequential(make()).double() for _ in range(2))
    assert not torch.equal(*(each[0].autoregressive_net.initial_layer.mask for each in (fused, other)))
    fuse(fused).load_state_dict(other.state_dict())
    z = torch.randn(5, D, dtype=torch.float64)
    torch.testing.assert_close(fused[0].inverse(z), other[0].inverse(z))


def test_parameters_are_read_in_each_call(by_stages):
    original, inputs = layer("zuko context"), given("zuko context")
    fused = fuse(copy.deepcopy(original))
    inverse(fused, *inputs)
    with torch.no_grad():
        for module in (original, fused):
            for parameter in module.parameters():
                parameter.mul_(0.5)
    torch.testing.assert_close(inverse(fused, *inputs), inverse(original, *inputs))


def test_passes_that_are_too_few():
    """zuko then gives a point that is no inverse, and so does the fused layer."""
    original = perturbed(zuko_layer(passes=2, order=torch.tensor([0, 9, 18, 27, 36, 45])), 0.3)
    assert fuse(copy.deepcopy(original))._fused_plan is None
    assert_agrees(original, inverse, torch.randn(257, D))


def test_features_that_depend_on_each_other():
    original, z = layer("nflows").double(), torch.randn(5, D, dtype=torch.float64)
    original.autoregressive_net.final_layer.mask.fill_(1)
    fused = fuse(copy.deepcopy(original))
    assert fused._fused_plan is None
    torch.testing.assert_close(fused.inverse(z), original.inverse(z))


class Halved(type(layer("nflows").autoregressive_net)):
    def forward(self, inputs, context=None):
        return super().forward(inputs, context) / 2


class Doubled(Halved):
    forward = lambda self, inputs, context=None: 2 * super(Halved, self).forward(inputs, context)  # noqa: E731


@pytest.mark.parametrize("network", [Halved, Doubled])
def test_a_network_of_your_own(network):
    original = layer("nflows")
    original.autoregressive_net = network(D, 11, output_multiplier=2)
    assert_agrees(original, inverse, *given("nflows"))


def with_network(module, network):
    module.hyper = network
    return module


@pytest.mark.parametrize(("module", "reason"), [
    (zuko_layer(univariate=zuko.transforms.MonotonicRQSTransform, shapes=[(8,), (8,), (7,)]), "univariate"),
    (zuko_layer(univariate=zuko.transforms.MonotonicAffineTransform, shapes=[(), (), ()]), "its shapes are"),
    (with_network(zuko_layer(), nn.Linear(D, 2 * D)), "its network is a Linear"),
    (type("Mine", (NFLOWS,), {})(D, 11), "subclass of MaskedAffineAutoregressiveTransform"),
], ids=["spline", "shapes", "network", "subclass"])
def test_refuses(module, reason):
    (found,) = survey(module)
    assert reason in found.reason


def test_too_many_features_raise():
    for name in ("nflows", "normflows"):
        with pytest.raises(RuntimeError):
            fuse(layer(name)).inverse(torch.randn(3, D + 1))
    with pytest.raises(ValueError, match="expected"):
        inverse(fuse(layer("zuko")), torch.randn(3, D + 1))

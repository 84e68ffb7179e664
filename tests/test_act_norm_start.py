"""ActNorm starts from data: statistics, order, refused batches, and the flag that survives saving."""

import pytest
import torch

from fastflow.nn import ActNorm, Flatten, FlowSequential
from fastflow.ops import act_norm_statistics


@pytest.mark.parametrize("shape", [(2, 3), (64, 3), (5, 3, 4, 4)], ids=str)
def test_starts_from_data(shape):
    layer = ActNorm(3).double()
    x = 5 + 3 * torch.randn(shape, dtype=torch.float64)
    assert torch.equal(layer(x)[0], x)
    layer.initialize(x)
    z = layer(x)[0].transpose(0, 1).flatten(1)
    assert torch.allclose(z.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.std(1), torch.ones(3, dtype=torch.float64), atol=1e-5)  # std + 1e-6 divides


def test_statistics_are_the_definition():
    x = torch.randn(7, 2, 3)
    shift, log_scale = act_norm_statistics(x)
    values = x.double().permute(1, 0, 2).reshape(2, 21)
    assert torch.allclose(shift, values.mean(1))
    deviation = ((values - values.mean(1, keepdim=True)).square().sum(1) / 20).sqrt()
    assert torch.allclose(log_scale, -(deviation + 1e-6).log())


def test_starts_once_and_the_start_survives_saving():
    layer, x = ActNorm(2), torch.randn(8, 2)
    layer.initialize(x)
    started = layer.shift.detach().clone()
    layer.initialize(x + 1)
    assert torch.equal(layer.shift, started)
    loaded = ActNorm(2)
    loaded.load_state_dict(layer.state_dict())
    loaded.initialize(x + 1)
    assert torch.equal(loaded.shift, started)
    assert bool(loaded.initialized)


def test_layers_start_in_order():
    flow = FlowSequential([ActNorm(2), ActNorm(2)], (2,))
    flow.initialize(3 + 2 * torch.randn(32, 2))
    assert torch.allclose(flow.layers[1].shift, torch.zeros(2), atol=1e-6)
    assert torch.allclose(flow.layers[1].log_scale, torch.zeros(2), atol=1e-5)
    assert not flow.layers[0]._forward_pre_hooks


def test_a_layer_that_is_reached_twice_starts_from_what_it_sees_first():
    shared, x = ActNorm(2), 3 + 2 * torch.randn(32, 2)
    FlowSequential([shared, shared], (2,)).initialize(x)
    shift, log_scale = act_norm_statistics(x)
    assert torch.equal(shared.shift, shift.float())
    assert torch.equal(shared.log_scale, log_scale.float())


def test_what_start_from_returns_is_ignored():
    class Returning(ActNorm):
        def start_from(self, x):
            super().start_from(x)
            return x + 1000

    flow = FlowSequential([Returning(2), ActNorm(2)], (2,))
    flow.initialize(3 + 2 * torch.randn(32, 2))
    assert torch.allclose(flow.layers[1].shift, torch.zeros(2), atol=1e-6)


def test_a_refused_batch_leaves_no_layer_started():
    """Of these images one pixel never varies, which only the second layer sees."""
    flow = FlowSequential([ActNorm(1), Flatten((1, 2, 2)), ActNorm(4)], (1, 2, 2))
    refused, good = 3 + 2 * torch.randn(2, 32, 1, 2, 2)
    refused[:, 0, 1, 1] = 5
    with pytest.raises(ValueError, match="zero variance"):
        flow.initialize(refused)
    assert not flow.layers[0].initialized
    assert torch.equal(flow(good)[0], good.flatten(1))
    flow.initialize(good)
    assert torch.equal(flow.layers[0].shift, act_norm_statistics(good)[0].float())


@pytest.mark.parametrize(("x", "message"), [
    (torch.randn(1, 3), r"act_norm_statistics: x has 1 row\(s\), expected at least 2"),
    (torch.randn(0, 3), r"x has 0 row\(s\), expected at least 2"),
    (torch.tensor([[1.0, 2.0, 0.1], [3.0, 2.0, 0.1]]), r"zero variance in 2 of 3 channels \(1, 2\)"),
    (torch.full((4, 3), 0.1), r"zero variance in 3 of 3 channels \(0, 1, 2\)"),
    (torch.tensor([[1.0, 2.0, float("nan")], [3.0, 5.0, 0.1]]), "not finite"),
])
def test_refuses_to_start(x, message):
    layer = ActNorm(3)
    with pytest.raises(ValueError, match=message):
        layer.initialize(x)
    assert not bool(layer.initialized)
    assert torch.equal(layer.shift, torch.zeros(3))
    assert not layer._forward_pre_hooks
    assert layer.training

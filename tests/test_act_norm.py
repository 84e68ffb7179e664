"""Activation normalisation: values, start from data, refusals, and the flag that survives saving."""

import pytest
import torch
from bijections import assert_inverts, assert_log_det, scatter
from oracles import LAYOUTS, assert_three_way, relayout
from torch.autograd import gradcheck

from fastflow.nn import ActNorm, Flatten, FlowSequential
from fastflow.ops import act_norm, act_norm_statistics

SHAPES = [(3, 1), (4, 5), (2, 8, 7), (3, 4, 7, 7), (2, 2, 3, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverts(shape, dtype):
    assert_inverts(scatter(ActNorm(shape[1]).to(dtype)), torch.randn(shape, dtype=dtype))


def test_log_det_is_the_jacobian():
    assert_log_det(scatter(ActNorm(3).double()), torch.randn(2, 3, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values(dtype, layout):
    x, shift, log_scale = torch.randn(4, 5, 3, 3).to(dtype), torch.randn(5), torch.randn(5)
    z, log_det = act_norm(relayout(x, layout), shift, log_scale)
    truth = (x.double() - shift.double().view(5, 1, 1)) * log_scale.double().exp().view(5, 1, 1)
    eager = (x.float() - shift.view(5, 1, 1)) * log_scale.exp().view(5, 1, 1)
    assert z.dtype == dtype
    assert_three_way(z, eager.to(dtype), truth, name="z")
    assert_three_way(log_det, 9 * log_scale.sum().expand(4), 9 * log_scale.double().sum().expand(4), name="log_det")


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(inverse):
    x, shift, log_scale = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 2), 3, 3))
    log_det = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *a: act_norm(*a[:3], log_det=a[3], inverse=inverse), (x, shift, log_scale, log_det))


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


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    z, log_det = ActNorm(3)(torch.randn(rows, 3, 2, 2))
    assert z.shape == (rows, 3, 2, 2)
    assert log_det.shape == (rows,)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((torch.zeros(2), torch.zeros(3), torch.zeros(3)), ValueError, "act_norm: x has shape"),
    ((torch.zeros(2, 3), torch.zeros(4), torch.zeros(3)), ValueError, r"act_norm: shift has shape \(4,\), exp"),
    ((torch.zeros(2, 3), torch.zeros(3), torch.zeros(3, 1)), ValueError, "act_norm: log_scale has shape"),
    ((torch.zeros(2, 3).long(), torch.zeros(3), torch.zeros(3)), TypeError, "act_norm: x has dtype"),
    (([0.0], torch.zeros(3), torch.zeros(3)), TypeError, "act_norm: x is list"),
])
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        act_norm(*arguments)


def test_bad_log_det():
    with pytest.raises(ValueError, match=r"act_norm: log_det has shape \(3,\), expected \(2,\)"):
        act_norm(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), log_det=torch.zeros(3))

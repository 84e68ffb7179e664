"""Reversible training: drift that is seen and corrected, memory that does not grow with depth, and what is refused."""

import re
import warnings

import pytest
import torch
from reversible_cases import gradients, pair, tabular

from fastflow.bench.timing import peak_memory
from fastflow.nn import AffineCoupling, Bijection, FlowSequential
from fastflow.ops import ScaleMap


class Forgetful(Bijection):
    """Loses most bits of its input: z = 1e-6 x + 1, in float32."""

    def forward(self, x, context=None, log_det=None):
        return 1e-6 * x + 1, x.new_zeros(len(x)) + (0 if log_det is None else log_det)

    def inverse(self, z, context=None, log_det=None):
        return (z - 1) * 1e6, z.new_zeros(len(z)) + (0 if log_det is None else log_det)


def test_drift_is_seen_named_once_and_corrected():
    def build(**options):
        flow = tabular(steps=4)
        return FlowSequential([*flow.layers[:2], Forgetful(), *flow.layers[2:]], (8,), **options)

    recorded, reversible = pair(build, keep_every=3)
    x = torch.randn(6, 8)
    expected = gradients(recorded, x)
    with pytest.warns(UserWarning, match=r"layers 0 to 2 .* least exact by itself .* layer 2 \(Forgetful\)"):
        found = gradients(reversible, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = gradients(reversible, x)
    for key, grad in expected.items():
        torch.testing.assert_close(found[key], grad, rtol=1e-5, atol=1e-6)
        assert torch.equal(found[key], again[key])


def test_drift_that_is_not_finite_is_seen():
    flow = tabular(steps=2, scale_map=ScaleMap("exp"), reversible=True)
    with torch.no_grad():
        flow.layers[0].conditioner[-1].bias.fill_(-200.0)
    with pytest.warns(UserWarning, match="layer 0"):
        gradients(flow, torch.randn(3, 8))


def test_memory_does_not_grow_with_depth():
    """Beyond the kept states and the gradients themselves."""
    features, rows, keep_every = 64, 1024, 8

    def live(steps):
        flow = tabular(steps, features, width=128, reversible=True, keep_every=keep_every)
        parameters, x = list(flow.parameters()), torch.randn(rows, features)

        def step():
            z, log_det = flow(x)
            return torch.autograd.grad(z.square().mean() - log_det.mean(), parameters)

        kept = (steps // keep_every) * 4 * rows * (features + 1)
        return peak_memory(step) - kept - sum(4 * each.numel() for each in parameters)

    assert live(64) <= 1.1 * live(8)


def test_checkpointed_conditioners_give_the_same_gradients_in_less_memory():
    features = 64
    plain, light = tabular(8, features, width=256), tabular(8, features, width=256, checkpoint="conditioner")
    x = torch.randn(512, features)
    expected = gradients(plain, x)
    for key, grad in gradients(light, x).items():
        torch.testing.assert_close(grad, expected[key])
    peaks = [peak_memory(lambda flow=flow: gradients(flow, x)) for flow in (plain, light)]
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_every": 0}, ValueError, "keep_every is 0, expected at least 1"),
        ({"checkpoint": "all"}, ValueError, "checkpoint is 'all', expected None or 'conditioner'"),
        ({"reversible": True, "checkpoint": "conditioner"}, ValueError, "reversible and checkpoint are both given"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match="^FlowSequential: " + re.escape(message)):
        tabular(**options)


def test_bad_use():
    with pytest.raises(TypeError, match="reversible needs conditioners that are modules, got function"):
        FlowSequential([AffineCoupling(lambda passive: passive.repeat(1, 2))], (8,), reversible=True)
    with pytest.raises(TypeError, match=r"x has dtype torch\.bfloat16, expected float32"):
        tabular(reversible=True)(torch.ones(2, 8, dtype=torch.bfloat16))
    x = torch.randn(2, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(tabular(reversible=True)(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()

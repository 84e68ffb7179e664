"""Logit: values at the ends of [0, 1], exact inverse, the change of density."""

import math

import pytest
import torch
from bijections import assert_inverts, assert_log_det
from oracles import assert_three_way
from torch.autograd import gradcheck

from fastflow.nn import Logit
from fastflow.ops import logit

ALPHAS = [0.0, 0.05, 0.1]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverts(alpha, dtype):
    assert_inverts(Logit(alpha), torch.rand(3, 2, 7, 7, dtype=dtype) * 0.98 + 0.01)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_log_det_is_the_jacobian(alpha):
    assert_log_det(Logit(alpha), torch.rand(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values(alpha, dtype):
    x = torch.rand(5, 8).to(dtype).clamp(0.01, 0.99)
    z, log_det = logit(x, alpha=alpha)

    def formula(x):
        p = (1 - alpha) * x + alpha / 2
        return p.log() - (1 - p).log(), (math.log(1 - alpha) - p.log() - (1 - p).log()).sum(1)

    truth, eager = formula(x.double()), formula(x.float())
    assert z.dtype == dtype
    assert_three_way(z, eager[0].to(dtype), truth[0], name="z")
    assert_three_way(log_det, eager[1], truth[1], name="log_det")


def test_ends_are_finite():
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    z, log_det = logit(x)
    end = math.log(0.975 / 0.025)
    assert torch.allclose(z, torch.tensor([[-end, end]], dtype=torch.float64))
    assert torch.allclose(log_det, 2 * torch.tensor([math.log(0.95) - math.log(0.025) - math.log(0.975)]).double())


def test_inverse_of_far_latents_keeps_its_log_det():
    z = torch.tensor([[-200.0, 200.0]])
    x, log_det = logit(z, inverse=True)
    assert torch.allclose(x, torch.tensor([[-0.025 / 0.95, 0.975 / 0.95]]))
    assert torch.allclose(log_det, torch.tensor([-400 - 2 * math.log(0.95)]))


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(inverse):
    x = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: logit(x, inverse=inverse), (x,))


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    z, log_det = Logit()(torch.rand(rows, 3))
    assert z.shape == (rows, 3)
    assert log_det.shape == (rows,)


def test_bad_arguments():
    with pytest.raises(ValueError, match="logit: alpha is 1, expected at least 0 and less than 1"):
        logit(torch.rand(2, 3), alpha=1)
    with pytest.raises(TypeError, match=r"logit: x has dtype torch\.uint8"):
        logit(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="logit: x has shape"):
        logit(torch.rand(3))

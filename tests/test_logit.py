"""Logit: values at the ends of [0, 1], exact inverse, the change of density, on every backend of the CPU."""

import math

import pytest
import torch
import torch.nn.functional as F
from backends import cpu_backends
from bijections import assert_inverts, assert_log_det
from oracles import LAYOUTS, assert_same_bits_on_any_threads, assert_three_way, relayout
from torch.autograd import gradcheck, gradgradcheck

from fastflow.nn import Logit
from fastflow.ops import logit
from fastflow.ops.logit import _backward, _forward, reference

ALPHAS = [0.0, 0.05, 0.1]
backend = cpu_backends(_forward, _backward)


def formulas(x, alpha, log_det, inverse):
    """As a user of PyTorch writes them."""
    if inverse:
        p = torch.sigmoid(x)
        own = math.log(1 - alpha) + F.softplus(x) + F.softplus(-x)
        return (p - alpha / 2) / (1 - alpha), log_det - own.flatten(1).sum(1)
    p = (1 - alpha) * x + alpha / 2
    return p.log() - (1 - p).log(), log_det + (math.log(1 - alpha) - p.log() - (1 - p).log()).flatten(1).sum(1)


def everything(function, x, alpha, log_det, inverse, weights):
    """Outputs and gradients by name."""
    x, log_det = x.detach().clone().requires_grad_(), log_det.detach().clone().requires_grad_()
    z, total = function(x, alpha=alpha, log_det=log_det, inverse=inverse)
    grads = torch.autograd.grad((z, total), (x, log_det), (weights[0].to(z.dtype), weights[1].to(total.dtype)))
    return {"z": z, "log_det": total, "grad_x": grads[0], "grad_log_det": grads[1]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(37, 5), (5, 601), (3, 7, 19), (3, 6, 5, 4), (2, 3, 3, 2, 5), (9, 1, 9, 9)], ids=str)
def test_kernels(backend, shape, dtype, layout):
    for alpha, inverse in ((0.05, False), (0.0, False), (1e-6, False), (0.05, True)):
        x = 4 * torch.randn(shape) if inverse else 0.02 + 0.96 * torch.rand(shape)
        x, log_det = x.to(dtype), torch.randn(shape[0]).to(torch.float64 if dtype == torch.float64 else torch.float32)
        weights = torch.randn(shape), torch.randn(shape[0])

        def compute(of, alpha=alpha, inverse=inverse, x=x, log_det=log_det, weights=weights):
            wide = torch.float64 if of == torch.float64 else torch.float32
            return everything(formulas, x.to(of), alpha, log_det.to(wide), inverse, weights)

        truth, single = compute(torch.float64), compute(torch.float32)
        if dtype == torch.float64:  # eager's rounding is float32's, 2^-29 times as large, and the truth has as much
            single = {name: truth[name] + (single[name].double() - truth[name]) * 2.0**-28 for name in truth}
        moved = relayout(x, layout)
        found = everything(logit, moved, alpha, relayout(log_det, "strided"), inverse, weights)
        for name, value in found.items():
            assert_three_way(value, single[name].to(value.dtype), truth[name], name=f"{name}, alpha {alpha} {inverse}")
        z = logit(moved, alpha=alpha, inverse=inverse)[0]
        assert z.stride() == (torch.empty_like(moved) if backend != "reference" else z).stride()


def test_extremes(backend):
    """The ends of [0, 1], what lies outside, and far latents, as the reference has them."""
    x = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.75, 1.0], [float("nan"), 0.5, 0.5]]).repeat(1, 12)
    for alpha in (0.0, 0.05):
        for ours, theirs in zip(logit(x, alpha=alpha), reference(x, None, alpha, False), strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
    outside = torch.tensor([[-0.5, 0.5], [1.5, 0.5], [0.5, 0.5]]).repeat(1, 20)
    for ours, theirs in zip(logit(outside), reference(outside, None, 0.05, False), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    z = torch.tensor([[-1e4, 1e4, 0.0, -0.0, 88.0, -100.0], [float("inf"), 0, 0, 0, 0, 0]]).repeat(1, 7)
    for ours, theirs in zip(logit(z, inverse=True), reference(z, None, 0.05, True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_many_threads_give_the_same_bits():
    x = torch.rand(3001, 70)
    assert_same_bits_on_any_threads(lambda: everything(logit, x, 0.05, torch.zeros(3001), False, (x, x[:, 0])).values())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("shape", "layout"), [((4, 6), "contiguous"), ((3, 6, 4, 5), "channels_last"),
                                               ((5, 3, 7), "strided"), ((0, 4), "contiguous")])  # fmt: skip
def test_opcheck(shape, layout, inverse):
    x = torch.rand(shape)
    x = relayout(x, layout) if x.numel() else x
    torch.library.opcheck(torch.ops.fastflow.logit.default, (x, torch.randn(shape[0]), 0.05, inverse))
    torch.library.opcheck(torch.ops.fastflow.logit_backward.default,
                          (torch.randn(shape), torch.randn(shape[0]), x, 0.05, inverse))


def test_compiles_into_one_graph():
    torch.compiler.reset()
    x, weights = torch.rand(4, 6, 3), (torch.randn(4, 6, 3), torch.randn(4))
    compiled = torch.compile(logit, fullgraph=True, backend="aot_eager")
    expected = everything(logit, x, 0.05, torch.zeros(4), False, weights)
    for name, value in everything(compiled, x, 0.05, torch.zeros(4), False, weights).items():
        torch.testing.assert_close(value, expected[name])


def test_second_derivatives_and_torch_func():
    x = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    for inverse in (False, True):
        assert gradgradcheck(lambda x, inverse=inverse: logit(x, inverse=inverse), (x,))
    per_sample = torch.vmap(torch.func.grad(lambda row: logit(row[None])[1].sum()))(x.detach())
    (expected,) = torch.autograd.grad(logit(x)[1].sum(), x)
    torch.testing.assert_close(per_sample, expected)


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

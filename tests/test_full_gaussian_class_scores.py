"""Scores of Gaussian classes with full covariances: values, gradients, blocks of classes, refusals."""

import math
from importlib import import_module

import pytest
import torch
from oracles import assert_three_way
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import MultivariateNormal

import fastflow
from fastflow.ops import full_gaussian_class_scores, gaussian_class_scores

module = import_module("fastflow.ops.full_gaussian_class_scores")


@pytest.fixture(params=[2**22, 1], ids=["one block", "class by class"], autouse=True)
def _block(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", request.param)


def _case(shared: bool, dtype: torch.dtype = torch.float64, rows: int = 5):
    factors = 0.3 * torch.randn(1 if shared else 3, 4, 4, dtype=dtype)
    factors.diagonal(dim1=1, dim2=2).abs_().add_(0.5)
    log_prior = torch.randn(3, dtype=dtype).log_softmax(0)
    return torch.randn(rows, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype), factors, log_prior


def _distributions(z, means, scale_tril, log_prior):
    normals = [MultivariateNormal(mean, scale_tril=factor.tril())
               for mean, factor in zip(means, scale_tril.expand(3, -1, -1), strict=True)]
    return torch.stack([normal.log_prob(z) for normal in normals], 1) + log_prior


@pytest.mark.parametrize("shared", [False, True])
def test_values(shared):
    given = _case(shared)
    assert torch.allclose(full_gaussian_class_scores(*given), _distributions(*given))
    single = [value.float() for value in given]
    truth = _distributions(*(value.double() for value in single))
    assert_three_way(full_gaussian_class_scores(*single), _distributions(*single), truth)
    with fastflow.backend("reference"):
        assert torch.allclose(full_gaussian_class_scores(*given), _distributions(*given))


def test_a_diagonal_factor_is_a_diagonal_gaussian():
    z, means, _, log_prior = _case(shared=False)
    log_scales = 0.3 * torch.randn(3, 4, dtype=torch.float64)
    own = full_gaussian_class_scores(z, means, torch.diag_embed(log_scales.exp()), log_prior)
    assert torch.allclose(own, gaussian_class_scores(z, means, log_scales, log_prior))


@pytest.mark.parametrize("shared", [False, True])
def test_gradients(shared):
    given = [value.requires_grad_() for value in _case(shared, rows=3)]
    assert gradcheck(full_gaussian_class_scores, given)
    assert gradgradcheck(full_gaussian_class_scores, given)


def test_far_away_it_is_finite_and_right():
    z, means, factors, log_prior = _case(shared=False)
    truth = full_gaussian_class_scores(1e4 * z, means, factors, log_prior)
    single = full_gaussian_class_scores(1e4 * z.float(), means.float(), factors.float(), log_prior.float())
    assert torch.allclose(single.double(), truth, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    given = [value.requires_grad_() for value in _case(shared=False, rows=rows)]
    scores = full_gaussian_class_scores(*given)
    assert scores.shape == (rows, 3)
    scores.sum().backward()
    assert given[2].grad.isfinite().all()


def test_half_precision_z_and_an_impossible_class():
    z, means, factors, log_prior = _case(shared=False, dtype=torch.float32)
    log_prior[1] = -math.inf
    scores = full_gaussian_class_scores(z.bfloat16(), means, factors, log_prior)
    assert scores.dtype == torch.float32
    assert (scores[:, 1] == -math.inf).all()
    assert torch.equal(scores, full_gaussian_class_scores(z.bfloat16().float(), means, factors, log_prior))


@pytest.mark.filterwarnings("ignore:.*_prims_common.check:FutureWarning")  # the compiler's own
def test_compiles_in_one_graph():
    given = [value.requires_grad_() for value in _case(shared=False, dtype=torch.float32)]
    scores = torch.compile(full_gaussian_class_scores, fullgraph=True)(*given)
    assert torch.allclose(scores, full_gaussian_class_scores(*given), rtol=1e-4)
    scores.sum().backward()
    assert given[2].grad is not None


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"z": torch.zeros(5, 2, 3).double()}, ValueError, r"z has shape \(5, 2, 3\), expected \[B, D\]"),
    ({"means": torch.zeros(0, 4).double()}, ValueError, r"means has shape \(0, 4\), expected \(K, 4\) with K >= 1"),
    ({"scale_tril": torch.eye(4).double()}, ValueError, r"scale_tril has shape \(4, 4\), expected \(3 or 1, 4, 4\)"),
    ({"scale_tril": torch.diag_embed(torch.tensor([[1.0, 0, 1, 1]])).double()}, ValueError,
     r"scale_tril has 0\.0 on its diagonal, expected positive scales"),
    ({"scale_tril": torch.full((1, 4, 4), math.nan).double()}, ValueError, r"scale_tril is nan at \(0, 0, 0\)"),
    ({"log_prior": torch.zeros(2).double()}, ValueError, r"log_prior has shape \(2,\), expected \(3,\)"),
    ({"means": torch.zeros(3, 4).long()}, TypeError, r"means has dtype torch\.int64"),
])
def test_bad_arguments(change, error, message):
    arguments = dict(zip(("z", "means", "scale_tril", "log_prior"), _case(shared=False), strict=True)) | change
    with pytest.raises(error, match=f"full_gaussian_class_scores: {message}"):
        full_gaussian_class_scores(**arguments)


def test_a_forced_kernel_is_refused():
    with fastflow.backend("cpu"), pytest.raises(RuntimeError, match="full_gaussian_class_scores: backend 'cpu' was"):
        full_gaussian_class_scores(*_case(shared=False))

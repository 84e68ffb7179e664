"""Gaussian class scores: values, gradients, the registered op, the marginal over classes, refusals."""

import math

import pytest
import torch
from oracles import LAYOUTS, assert_three_way, relayout
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Independent, Normal

import fastflow
from fastflow.ops import class_marginal, gaussian_class_marginal, gaussian_class_scores

SCALE_SHAPES = {"class_diag": (4, 6), "shared_diag": (1, 6), "isotropic": (4, 1), "one": (1, 1)}


def _case(scales: str = "class_diag", rows: int = 5, dtype: torch.dtype = torch.float64):
    z, means = torch.randn(rows, 6, dtype=dtype), torch.randn(4, 6, dtype=dtype)
    return z, means, 0.3 * torch.randn(SCALE_SHAPES[scales], dtype=dtype), torch.randn(4, dtype=dtype).log_softmax(0)


def _distributions(z, means, log_scales, log_prior):
    """torch.distributions, one class after the other."""
    scales = log_scales.exp().expand_as(means)
    normals = [Independent(Normal(mean, scale), 1) for mean, scale in zip(means, scales, strict=True)]
    return torch.stack([normal.log_prob(z) for normal in normals], 1) + log_prior


@pytest.mark.parametrize("scales", SCALE_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values(scales, dtype):
    arguments = _case(scales, dtype=dtype)
    truth = _distributions(*(value.double() for value in arguments))
    scores = gaussian_class_scores(*arguments)
    assert scores.dtype == dtype
    z, means, log_scales, _ = (value.double() for value in arguments)
    terms = (0.5 * ((z[:, None] - means) / log_scales.exp()).square() + log_scales.abs() + 1).sum(-1) + 3
    assert_three_way(scores, _distributions(*arguments), truth, terms=terms)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    z, *rest = _case()
    expected = gaussian_class_scores(z, *rest)
    assert torch.allclose(gaussian_class_scores(relayout(z, layout), *rest), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_z_is_scored_in_float32(dtype):
    z, *rest = _case(dtype=torch.float32)
    scores = gaussian_class_scores(z.to(dtype), *rest)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, gaussian_class_scores(z.to(dtype).float(), *rest))


def test_far_from_the_origin_nothing_cancels():
    z, means, log_scales, log_prior = _case(dtype=torch.float32)
    far = torch.tensor(1024.0)  # exact in float32 beside values rounded to 2^-10
    z, means = (z * 1024).round() / 1024, (means * 1024).round() / 1024
    near = gaussian_class_scores(z, means, log_scales, log_prior)
    assert torch.equal(gaussian_class_scores(z + far, means + far, log_scales, log_prior), near)


@pytest.mark.parametrize("scales", SCALE_SHAPES)
def test_gradients(scales):
    arguments = tuple(value.requires_grad_() for value in _case(scales, rows=3))
    assert gradcheck(gaussian_class_scores, arguments)
    assert gradgradcheck(gaussian_class_scores, arguments)


def test_gradients_are_the_references():
    arguments = [value.requires_grad_() for value in _case()]
    weights = torch.randn(5, 4, dtype=torch.float64)
    own = torch.autograd.grad((weights * gaussian_class_scores(*arguments)).sum(), arguments)
    with fastflow.backend("reference"):
        expected = torch.autograd.grad((weights * gaussian_class_scores(*arguments)).sum(), arguments)
    for gradient, truth in zip(own, expected, strict=True):
        assert torch.allclose(gradient, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_op(rows):
    z, means, log_scales, log_prior = _case(rows=rows, dtype=torch.float32)
    op = torch.ops.fastflow.gaussian_class_scores.default
    for layout in LAYOUTS:
        torch.library.opcheck(op, (relayout(z, layout), relayout(means, layout), log_scales, log_prior,
                                    None, None, True))
    labels, weights = torch.arange(rows) % 5 - 1, torch.rand(rows, 4)
    torch.library.opcheck(op, (z, means, log_scales[:1].expand(4, 6), log_prior, labels, weights, False))


def test_compiles_in_one_graph():
    arguments = [value.requires_grad_() for value in _case(dtype=torch.float32)]
    scores = torch.compile(gaussian_class_scores, fullgraph=True)(*arguments)
    assert torch.allclose(scores, gaussian_class_scores(*arguments))
    scores.sum().backward()
    assert arguments[0].grad is not None


def test_functional_transforms_use_the_reference():
    z, means, log_scales, log_prior = _case()
    rows = torch.func.vmap(lambda row: gaussian_class_scores(row[None], means, log_scales, log_prior)[0])(z)
    assert torch.allclose(rows, gaussian_class_scores(z, means, log_scales, log_prior))


def test_impossible_class():
    z, means, log_scales, _ = _case()
    log_prior = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).log()
    means = means.requires_grad_()
    marginal = gaussian_class_marginal(z, means, log_scales, log_prior)
    assert torch.allclose(marginal, gaussian_class_scores(z, means[:2], log_scales[:2], log_prior[:2]).logsumexp(1))
    marginal.sum().backward()
    assert means.grad.isfinite().all()
    assert torch.equal(means.grad[2:], torch.zeros(2, 6, dtype=torch.float64))


def test_marginal_sums_the_classes_out():
    z, means, log_scales, log_prior = _case()
    scores = _distributions(z, means, log_scales, log_prior)
    labels = torch.tensor([0, -1, 3, -1, 2])
    expected = torch.stack([scores[0, 0], scores[1].logsumexp(0), scores[2, 3], scores[3].logsumexp(0), scores[4, 2]])
    assert torch.allclose(gaussian_class_marginal(z, means, log_scales, log_prior, labels), expected)
    assert torch.allclose(gaussian_class_marginal(z, means, log_scales, log_prior), scores.logsumexp(1))


def test_weights_serve_unlabelled_rows():
    scores = torch.randn(3, 4)
    weights = torch.rand(3, 4)
    expected = (weights * scores).sum(1)
    assert torch.allclose(class_marginal(scores, weights=weights), expected)
    labelled = class_marginal(scores, torch.tensor([-1, 2, -1]), weights)
    assert torch.allclose(labelled, torch.stack([expected[0], scores[1, 2], expected[2]]))


def test_weight_zero_silences_an_impossible_class():
    scores = torch.tensor([[0.5, -math.inf, 3.0]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    value = class_marginal(scores, weights=weights)
    assert value.item() == 0.5
    value.backward()
    assert torch.equal(scores.grad, torch.tensor([[1.0, 0.0, 0.0]]))
    assert torch.equal(weights.grad, torch.tensor([[0.5, 0.0, 3.0]]))


def test_em_step_has_the_gradient_of_the_marginal():
    """sum_k R_k G_k with R = softmax G held fixed: the identity behind EM (seed-systems 12.4)."""
    arguments = [value.requires_grad_() for value in _case()]
    labels = torch.tensor([1, -1, -1, 0, -1])
    responsibilities = gaussian_class_scores(*arguments).softmax(1).detach()
    step = gaussian_class_marginal(*arguments, labels, responsibilities)
    em = torch.autograd.grad(step.sum(), arguments)
    direct = torch.autograd.grad(gaussian_class_marginal(*arguments, labels).sum(), arguments)
    for gradient, expected in zip(em, direct, strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-10)


def test_class_marginal_gradients():
    scores = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(5, 3, dtype=torch.float64)
    labels = torch.tensor([0, -1, 2, -1, 1])
    assert gradcheck(lambda s: class_marginal(s, labels), (scores,))
    assert gradcheck(lambda s: class_marginal(s, labels, weights), (scores,))
    weights[1, 0] = 0
    weights.requires_grad_()
    assert gradcheck(lambda s, w: class_marginal(s, labels, w), (scores, weights))
    assert gradgradcheck(lambda s, w: class_marginal(s, labels, w), (scores, weights))


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    z, means, log_scales, log_prior = _case(rows=rows)
    labels = torch.zeros(rows, dtype=torch.int64)
    assert gaussian_class_scores(z, means, log_scales, log_prior).shape == (rows, 4)
    assert gaussian_class_marginal(z, means, log_scales, log_prior, labels).shape == (rows,)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"z": torch.zeros(5, 2, 3).double()}, ValueError, r"gaussian_class_scores: z has shape \(5, 2, 3\)"),
    ({"z": torch.zeros(5, 6).long()}, TypeError, r"gaussian_class_scores: z has dtype torch\.int64"),
    ({"means": torch.zeros(0, 6).double()}, ValueError, r"means has shape \(0, 6\), expected \(K, 6\) with K >= 1"),
    ({"means": torch.zeros(4, 5).double()}, ValueError, r"means has shape \(4, 5\), expected \(K, 6\)"),
    ({"log_scales": torch.zeros(6).double()}, ValueError, r"log_scales has shape \(6,\), expected \(4 or 1, 6 or 1\)"),
    ({"log_scales": torch.zeros(3, 6).double()}, ValueError, r"log_scales has shape \(3, 6\)"),
    ({"log_prior": torch.zeros(3).double()}, ValueError, r"log_prior has shape \(3,\), expected \(4,\) to match means"),
    ({"log_prior": [0.0] * 4}, TypeError, "log_prior is list, expected a Tensor"),
])
def test_bad_arguments(change, error, message):
    arguments = dict(zip(("z", "means", "log_scales", "log_prior"), _case(), strict=True)) | change
    with pytest.raises(error, match=message):
        gaussian_class_scores(**arguments)


@pytest.mark.parametrize(("labels", "error", "message"), [
    (torch.tensor([0, 1, 4]), ValueError, r"labels has the value 4, expected -1 to 3 \(-1: unlabelled\)"),
    (torch.tensor([0, -2, 1]), ValueError, "labels has the value -2, expected -1 to 3"),
    (torch.tensor([0, 1]), ValueError, r"labels has shape \(2,\), expected \(3,\)"),
    (torch.tensor([0.0, 1.0, 2.0]), TypeError, r"labels has dtype torch\.float32, expected an integer dtype"),
    ([0, 1, 2], TypeError, "labels is list"),
])
def test_bad_labels(labels, error, message):
    with pytest.raises(error, match=f"class_marginal: {message}"):
        class_marginal(torch.randn(3, 4), labels)


def test_bad_weights_and_no_class():
    with pytest.raises(ValueError, match=r"class_marginal: weights has shape \(3, 5\), expected \(3, 4\) like scores"):
        class_marginal(torch.randn(3, 4), weights=torch.rand(3, 5))
    with pytest.raises(ValueError, match=r"class_marginal: scores has shape \(3, 0\), .*at least one class"):
        class_marginal(torch.randn(3, 0))

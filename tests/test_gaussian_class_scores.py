"""Gaussian class scores: values, gradients, the registered ops, refusals."""

import math
import re

import hypothesis.strategies as st
import pytest
import torch
from backends import cpu_backends
from hypothesis import HealthCheck, given, settings
from oracles import LAYOUTS, assert_same_bits_on_any_threads, assert_three_way, relayout
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Independent, Normal

from fastflow.ops import gaussian_class_marginal, gaussian_class_scores
from fastflow.ops._checks import check_finite
from fastflow.ops.gaussian_class_scores import _backward, _forward, backward_reference, reference

backend = cpu_backends(_forward, _backward)
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
def test_values(backend, scales, dtype):
    arguments = _case(scales, dtype=dtype)
    truth = _distributions(*(value.double() for value in arguments))
    scores = gaussian_class_scores(*arguments)
    assert scores.dtype == dtype
    z, means, log_scales, _ = (value.double() for value in arguments)
    terms = (0.5 * ((z[:, None] - means) / log_scales.exp()).square() + log_scales.abs() + 1).sum(-1) + 3
    assert_three_way(scores, _distributions(*arguments), truth, terms=terms)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout):
    z, *rest = _case()
    expected = gaussian_class_scores(z, *rest)
    assert torch.allclose(gaussian_class_scores(relayout(z, layout), *rest), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_z_is_scored_in_float32(backend, dtype):
    z, *rest = _case(dtype=torch.float32)
    scores = gaussian_class_scores(z.to(dtype), *rest)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, gaussian_class_scores(z.to(dtype).float(), *rest))


def test_far_from_the_origin_nothing_cancels(backend):
    z, means, log_scales, log_prior = _case(dtype=torch.float32)
    far = torch.tensor(1024.0)  # exact in float32 beside values rounded to 2^-10
    z, means = (z * 1024).round() / 1024, (means * 1024).round() / 1024
    near = gaussian_class_scores(z, means, log_scales, log_prior)
    assert torch.equal(gaussian_class_scores(z + far, means + far, log_scales, log_prior), near)


@pytest.mark.parametrize("scales", SCALE_SHAPES)
def test_gradients(backend, scales):
    arguments = tuple(value.requires_grad_() for value in _case(scales, rows=3))
    assert gradcheck(gaussian_class_scores, arguments)
    assert gradgradcheck(gaussian_class_scores, arguments)


def _everything(rows, classes, features, dtype, scales, seed, layout="contiguous", labelled=True, weighted=True):
    """(arguments of the forward op, those that its backward has besides)."""
    generator = torch.Generator().manual_seed(seed)
    compute = torch.promote_types(dtype, torch.float32)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(compute)

    scale_shape = {"class_diag": (classes, features), "shared_diag": (1, features), "isotropic": (classes, 1),
                   "one": (1, 1)}[scales]
    log_prior = normal(classes).log_softmax(0)
    if classes > 2:
        log_prior[1] = -math.inf
    labels = torch.randint(-1, classes, (rows,), generator=generator) if labelled else None
    weights = normal(rows, classes).softmax(1).where(normal(rows, classes) > 0, 0.0) if weighted else None
    z = relayout(normal(rows, features).to(dtype), layout)
    forward = (z, relayout(normal(classes, features), layout), 0.3 * normal(*scale_shape), log_prior, labels, weights)
    return forward, (normal(rows), normal(rows), normal(rows, classes))


def _double(values):
    return [value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for value in values]


def _sizes(z, means, log_scales, log_prior, labels, weights, marginal, grad_marginal, grad_picked, grad_scores):
    """What the scores and each gradient would be if none of the terms they sum were negative. A posterior is exp of a
    difference of scores, and as inexact as these are large."""
    pull = (z[:, None] - means).abs() * torch.exp(-log_scales)
    score = (0.5 * pull.square() + log_scales.abs() + 1).sum(-1) + log_prior.abs().nan_to_num(posinf=0)
    grad = grad_marginal.abs()[:, None] + grad_picked.abs()[:, None] + grad_scores.abs()
    grad = grad * (1 + score)
    precise = grad[..., None] * pull * torch.exp(-log_scales)
    of_scales = (grad[..., None] * (pull.square() + 1)).sum(0).sum_to_size(log_scales.shape)
    of_weights = grad_picked.abs()[:, None] * score
    return {"marginal": score.amax(1), "picked": score.amax(1), "scores": score, "grad_z": precise.sum(1),
            "grad_means": precise.sum(0), "grad_log_scales": of_scales, "grad_log_prior": grad.sum(0),
            "grad_weights": of_weights}


def _assert_everything_is_right(forward, grads):
    """Values and gradients of the ops, all outputs asked for, by the three-way rule."""
    weighted = forward[5] is not None
    asked = (True, True, weighted)
    truth, eager, own = reference(*_double(forward), True), reference(*forward, True), _forward.dispatch(*forward, True)
    sizes = _sizes(*_double(forward), truth[0], *_double(grads))
    again = _backward.dispatch(*forward, own[0], None, *grads, *asked)
    own += _backward.dispatch(*forward, own[0], own[2], *grads, *asked)
    eager += backward_reference(*forward, eager[0], None, *grads, *asked)
    truth += backward_reference(*_double(forward), truth[0], None, *_double(grads), *asked)
    for results in (own, own[:3] + again):
        for name, *which in zip(sizes, results, eager, truth, strict=True):
            if which[2].numel():
                assert_three_way(*which, name=name, terms=sizes[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scales", SCALE_SHAPES)
@pytest.mark.parametrize(("rows", "classes", "features"), [
    (1, 1, 1), (70, 3, 17), (65, 10, 64), (300, 37, 9), (131, 130, 33), (1100, 20, 67), (20, 7, 2100)])
def test_ops(rows, classes, features, scales, dtype):
    _assert_everything_is_right(*_everything(rows, classes, features, dtype, scales, seed=rows + classes))


@given(rows=st.integers(0, 90), classes=st.integers(1, 70), features=st.integers(1, 70), seed=st.integers(0, 2**31),
       scales=st.sampled_from(sorted(SCALE_SHAPES)), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
       layout=st.sampled_from(["contiguous", "strided", "transposed", "offset"]), labelled=st.booleans(),
       weighted=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ops_of_any_shape_and_strides(rows, classes, features, seed, scales, dtype, layout, labelled, weighted):
    _assert_everything_is_right(
        *_everything(rows, classes, features, dtype, scales, seed, layout, labelled, weighted))


def test_gradients_of_an_expanded_gradient():
    forward, _ = _everything(40, 5, 6, torch.float32, "class_diag", seed=0)
    one = torch.ones(())
    _assert_everything_is_right(forward, (one.expand(40), one.expand(40), one.expand(40, 5)))


def test_same_bits_on_any_threads():
    forward, grads = _everything(700, 150, 33, torch.float32, "class_diag", seed=1)

    def compute():
        own = _forward.dispatch(*forward, True)
        return [*own, *_backward.dispatch(*forward, own[0], None, *grads, True, True, True)]

    assert_same_bits_on_any_threads(compute)


def test_ten_thousand_standard_deviations_away(backend):
    """Finite, right to float32, and so are the gradients: every class is as far, but one is the nearest."""
    features, classes = 40, 37
    directions = torch.randn(classes, features, dtype=torch.float64)
    means = 0.01 * directions
    z = 1e4 * directions[:5] / directions[:5].norm(dim=1, keepdim=True)
    given = [z, means, torch.zeros(1, 1, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)]
    truth = gaussian_class_marginal(*given)
    single = [value.float().requires_grad_() for value in given]
    marginal = gaussian_class_marginal(*single)
    assert marginal.isfinite().all()
    assert torch.allclose(marginal.double(), truth, rtol=1e-6)
    for grad in torch.autograd.grad(marginal.sum(), single):
        assert grad.isfinite().all()
    pull = torch.autograd.grad(gaussian_class_marginal(*single).sum(), single[0])[0].double()
    assert torch.allclose(pull, -z, rtol=1e-3, atol=1.0)


def test_the_expanded_form_loses_what_differences_keep(backend):
    """z^2 - 2 z m + m^2 at means of 100 scales: why no matrix product makes the scores."""
    means = 100 * torch.randn(10, 196)
    z = means[torch.arange(64) % 10] + torch.randn(64, 196)
    flat = (torch.zeros(1, 1), torch.zeros(10))
    truth = gaussian_class_marginal(*(value.double() for value in (z, means, *flat)))
    square = (z * z).sum(1, keepdim=True) - 2 * z @ means.T + (means * means).sum(1)
    expanded = torch.logsumexp(-0.5 * square - 98 * math.log(2 * math.pi), 1)
    assert (expanded.double() - truth).abs().max() > 0.1
    assert (gaussian_class_marginal(z, means, *flat).double() - truth).abs().max() < 1e-3


def test_extreme_scales(backend):
    """Scales at which squared differences leave float32's range before they are divided."""
    for log_scale in (-45.0, 60.0):
        z, means, _, log_prior = (value.float() for value in _case())
        scale = math.exp(log_scale)
        for shape in SCALE_SHAPES.values():
            scores = gaussian_class_scores(scale * z, scale * means, torch.full(shape, log_scale), log_prior)
            expected = gaussian_class_scores(z, means, torch.zeros(shape), log_prior) - 6 * log_scale
            assert torch.allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_op(rows):
    z, means, log_scales, log_prior = _case(rows=rows, dtype=torch.float32)
    op = torch.ops.fastflow.gaussian_class_scores.default
    for layout in LAYOUTS:
        torch.library.opcheck(op, (relayout(z, layout), relayout(means, layout), log_scales, log_prior,
                                    None, None, True))
    labels, weights = torch.arange(rows) % 5 - 1, torch.rand(rows, 4)
    torch.library.opcheck(op, (z, means, log_scales[:1], log_prior, labels, weights, False))
    backward = torch.ops.fastflow.gaussian_class_scores_backward.default
    grad = torch.randn(rows)
    torch.library.opcheck(backward, (z, means, log_scales, log_prior, labels, weights, grad, None, grad, grad,
                                     torch.randn(rows, 4), True, True, True))
    torch.library.opcheck(backward, (z, means, log_scales[:1], log_prior, None, None, grad, torch.randn(rows, 4), grad,
                                     None, None, True, False, False))


def test_compiles_in_one_graph():
    arguments = [value.requires_grad_() for value in _case(dtype=torch.float32)]
    scores = torch.compile(gaussian_class_scores, fullgraph=True, backend="aot_eager")(*arguments)
    assert torch.allclose(scores, gaussian_class_scores(*arguments))
    scores.sum().backward()
    assert arguments[0].grad is not None


def test_functional_transforms_use_the_reference():
    z, means, log_scales, log_prior = _case()
    rows = torch.func.vmap(lambda row: gaussian_class_scores(row[None], means, log_scales, log_prior)[0])(z)
    assert torch.allclose(rows, gaussian_class_scores(z, means, log_scales, log_prior))


def test_impossible_class(backend):
    z, means, log_scales, _ = _case()
    log_prior = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).log()
    means = means.requires_grad_()
    marginal = gaussian_class_marginal(z, means, log_scales, log_prior)
    assert torch.allclose(marginal, gaussian_class_scores(z, means[:2], log_scales[:2], log_prior[:2]).logsumexp(1))
    marginal.sum().backward()
    assert means.grad.isfinite().all()
    assert torch.equal(means.grad[2:], torch.zeros(2, 6, dtype=torch.float64))


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"z": torch.zeros(5, 2, 3).double()}, ValueError, r"gaussian_class_scores: z has shape \(5, 2, 3\)"),
    ({"z": torch.zeros(5, 6).long()}, TypeError, r"gaussian_class_scores: z has dtype torch\.int64"),
    ({"means": torch.zeros(0, 6).double()}, ValueError, r"means has shape \(0, 6\), expected \(K, 6\) with K >= 1"),
    ({"means": torch.zeros(4, 5).double()}, ValueError, r"means has shape \(4, 5\), expected \(K, 6\)"),
    ({"log_scales": torch.zeros(6).double()}, ValueError, r"log_scales has shape \(6,\), expected \(4 or 1, 6 or 1\)"),
    ({"log_scales": torch.zeros(3, 6).double()}, ValueError, r"log_scales has shape \(3, 6\)"),
    ({"log_prior": torch.zeros(3).double()}, ValueError, r"log_prior has shape \(3,\), expected \(4,\) to match means"),
    ({"log_prior": [0.0] * 4}, TypeError, "log_prior is list, expected a Tensor"),
    ({"means": torch.full((4, 6), math.nan).double()}, ValueError, r"means is nan at \(0, 0\), expected finite"),
    ({"log_scales": torch.full((4, 1), -math.inf).double()}, ValueError, r"log_scales is -inf at \(0, 0\)"),
    ({"log_prior": torch.tensor([0, 0, math.inf, 0]).double()}, ValueError,
     r"log_prior is inf at \(2,\), expected finite numbers or -inf"),
    ({"means": torch.zeros(4, 6, device="meta")}, ValueError, "means is on meta, expected cpu"),
])
def test_bad_arguments(change, error, message):
    arguments = dict(zip(("z", "means", "log_scales", "log_prior"), _case(), strict=True)) | change
    with pytest.raises(error, match=message):
        gaussian_class_scores(**arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "a part"])
def test_every_number_that_is_not_finite_is_found(dtype, wrong, layout):
    """Also beside large ones, whose sum is not finite."""
    for place in (0, 7, 40, 41):
        values = torch.full((6, 7), torch.finfo(dtype).max, dtype=dtype)
        if layout == "a part":
            values = torch.full((6, 9), wrong, dtype=dtype)[:, 1:8].fill_(1)
        if layout == "transposed":
            values = values.T
        check_finite("op", values=values)
        where = (place // values.shape[1], place % values.shape[1])
        message = f"op: values is {wrong} at {where}, expected finite numbers"
        values[where] = wrong
        with pytest.raises(ValueError, match=re.escape(message)):
            check_finite("op", values=values)
    check_finite("op", values=torch.empty(0, 7, dtype=dtype))

"""The CUDA C++ kernels on a device, against 80-bit truth. Streams, graphs: test_streams_and_graphs.py."""

from dataclasses import replace

import pytest
import torch
from gaussian_cases import MIXES, OF_BACKWARD, SCALES, Problem, assert_right, problem
from oracles import LAYOUTS, relayout
from torch import Tensor

import fastflow
from fastflow import _backend
from fastflow.ops import gaussian_class_marginal

_STATE = _backend.state("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_STATE.status == "unavailable", reason=_STATE.reason)]


@pytest.fixture(params=[True, False], ids=["kept scores", "scores again"])
def kept(request) -> bool:
    """Whether backward is given the scores."""
    return request.param


def _run(p: Problem, kept: bool, layout: str = "contiguous") -> dict[str, Tensor]:
    """Results and gradients of everything, with the matrices in that layout on the device."""
    def place(value: Tensor | None) -> Tensor | None:
        return value if value is None else relayout(value.cuda(), layout) if value.dim() == 2 else value.cuda()

    p = replace(p, **{name: place(value) for name, value in p.fields().items()})
    marginal, picked, scores = torch.ops.fastflow_cuda.gaussian_class_scores(*p.given, True)
    grads = torch.ops.fastflow_cuda.gaussian_class_scores_backward(
        *p.given, marginal, place(scores) if kept else None, *p.pulled, True, True, p.weights is not None)
    results = {"marginal": marginal, "picked": picked, "scores": scores} | {
        f"grad_{name}": grad for name, grad in zip(OF_BACKWARD, grads, strict=True) if getattr(p, name) is not None}
    return {name: result.cpu() for name, result in results.items()}


@pytest.mark.parametrize(("rows", "classes", "features"), [
    (70, 10, 101), (70, 37, 68), (1, 1, 1), (129, 17, 31), (5, 3, 0)])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_poisoned_memory_leaves_no_trace(rows, classes, features, scales, dtype, kept):
    p = problem(rows, classes, features, dtype, scales)
    assert_right(p, _run(p, kept, "offset"))


@pytest.mark.parametrize(("rows", "classes", "features"), [(4000, 10, 196), (300, 1000, 20), (2000, 300, 50)])
@pytest.mark.parametrize("scales", SCALES)
def test_values_and_gradients(rows, classes, features, scales, kept):
    p = problem(rows, classes, features, scales=scales)
    assert_right(p, _run(p, kept))


def test_empty_batch(kept):
    assert all(torch.equal(result, torch.zeros_like(result)) for result in _run(problem(0, 3, 5), kept).values())


@pytest.mark.parametrize("classes", [5, 20])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_labels_weights_and_storage(mix, dtype, classes, kept):
    p = problem(400, classes, 36, dtype, mix=mix)
    assert_right(p, _run(p, kept))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features", [36, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_layouts(dtype, features, layout, kept):
    p = problem(200, 3, features, dtype)
    expected, found = _run(p, kept), _run(p, kept, layout)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("rows", "classes", "features"), [(5000, 10, 196), (1000, 700, 60)])
def test_same_bits_twice(rows, classes, features, kept):
    p = problem(rows, classes, features)
    one, two = _run(p, kept), _run(p, kept)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_ten_thousand_classes_of_3072_features():
    """In memory are z, the parameters, their gradients and sums of their size: neither [B, K, D] nor [B, K]."""
    rows, classes, features = 4096, 10_000, 3072
    z = torch.randn(rows, features, device="cuda", requires_grad=True)
    means = torch.randn(classes, features, device="cuda", requires_grad=True)
    log_scales = torch.zeros(classes, features, device="cuda", requires_grad=True)
    log_prior = torch.zeros(classes, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with fastflow.backend("cuda"):
        gaussian_class_marginal(z, means, log_scales, log_prior).sum().backward()
    of_parameters = 2 * means.nbytes
    assert torch.cuda.max_memory_allocated() - before <= 2.6 * of_parameters + z.nbytes + 4 * rows * classes / 2
    # the gradient of a log prior is the responsibility of the class: they add up to one a row
    torch.testing.assert_close(log_prior.grad.sum(), torch.tensor(float(rows), device="cuda"))
    assert all(value.grad.isfinite().all() for value in (z, means, log_scales))

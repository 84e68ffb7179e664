"""The CUDA C++ kernel on a device, against the reference in float64."""

import pytest
import torch
from oracles import assert_three_way

import fastflow
from fastflow import _backend
from fastflow.ops.gaussian_class_scores import gaussian_class_scores, reference

_STATE = _backend.state("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_STATE.status == "unavailable", reason=_STATE.reason)]


def _inputs(rows, classes, features, dtype):
    """Strided, far from the origin; the last tile of every axis is ragged."""
    z = 100 + torch.randn(features, rows, dtype=dtype, device="cuda").T
    means = 100 + torch.randn(classes, 2 * features, dtype=dtype, device="cuda")[:, ::2]
    log_scales = torch.randn(classes, 1, dtype=dtype, device="cuda")
    log_prior = torch.randn(2 * classes, dtype=dtype, device="cuda")[::2]
    return z, means, log_scales, log_prior


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "classes", "features"), [(70, 19, 101), (1, 1, 1), (1000, 10, 784), (0, 3, 5)])
def test_scores(rows, classes, features, dtype):
    inputs = _inputs(rows, classes, features, dtype)
    with fastflow.backend("cuda"):
        scores = gaussian_class_scores(*inputs)
    eager = reference(*inputs)
    truth = reference(*(value.double().cpu() for value in inputs)) if rows else eager.cpu().double()
    assert_three_way(scores.cpu(), eager.cpu(), truth)


def test_runs_on_the_current_stream_and_in_a_graph():
    inputs = _inputs(70, 19, 101, torch.float32)
    expected = reference(*inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with fastflow.backend("cuda"), torch.cuda.stream(stream):
        scores = gaussian_class_scores(*inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            replayed = gaussian_class_scores(*inputs)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(replayed, expected)

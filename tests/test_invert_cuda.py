"""The CUDA C++ kernel of invert on a device, against float64 on the CPU."""

import pytest
import torch

import fastflow
from fastflow import _backend
from fastflow.ops import channel_mix
from fastflow.ops.invert import invert, reference

_STATE = _backend.state("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_STATE.status == "unavailable", reason=_STATE.reason)]


@pytest.mark.parametrize("rows", [1, 2, 7, 24, 64])
def test_inverse_and_log_abs_det(rows):
    matrix = torch.randn(rows, rows, dtype=torch.float64)
    with fastflow.backend("cuda"):
        found = invert(matrix.T.cuda().T)
    for ours, theirs in zip(found, reference(matrix), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


def test_singular():
    with fastflow.backend("cuda"):
        assert invert(torch.zeros(3, 3, dtype=torch.float64, device="cuda"))[1].isneginf()


def test_runs_in_a_graph():
    matrix = torch.randn(8, 8, dtype=torch.float64, device="cuda")
    with fastflow.backend("cuda"):
        invert(matrix)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            inverse, _ = invert(matrix)
    matrix.copy_(torch.randn_like(matrix))
    graph.replay()
    torch.testing.assert_close(inverse @ matrix, torch.eye(8, dtype=torch.float64, device="cuda"))


def test_serves_a_mix_whose_backend_has_no_kernel_of_it():
    x, weight = torch.randn(5, 8, 4, device="cuda"), torch.randn(8, 8, device="cuda")
    with fastflow.backend("triton"):
        z, _ = channel_mix(x, weight)
        torch.testing.assert_close(channel_mix(z, weight, inverse=True)[0], x, rtol=1e-3, atol=1e-3)

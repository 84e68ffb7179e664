"""The CUDA C++ kernels of residual_coupling on a device, against the reference in float64."""

import pytest
import torch
from residual_coupling_cases import Case, assert_backward, assert_forward, flat

import fastflow
from fastflow import _backend
from fastflow.ops.residual_coupling import backward_op, forward_op
from fastflow.ops.scale_map import KINDS

_STATE = _backend.state("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_STATE.status == "unavailable", reason=_STATE.reason)]

DTYPES = (torch.float32, torch.bfloat16)
SHARED = {"passive_shared": True, "active_shared": True}
CASES = [
    *(case for dtype in DTYPES for case in (
        # SCNF's head, short tiles and tall ones, the last one ragged.
        Case(256, 10, 98, 98, 256, 4, dtype, **SHARED),
        Case(2001, 10, 98, 98, 256, 4, dtype),
        Case(37, 10, 98, 98, 256, 4, dtype, passive_shared=True, pairs=211),
        # Several chunks of results; one class; more columns than four warps, a pass or the shared memory hold.
        Case(40_000, 1, 13, 11, 48, 1, dtype, shift_first=False),
        Case(21, 3, 300, 260, 33, 1, dtype, log_det=False),
        Case(300, 5, 512, 512, 512, 2, dtype, active_shared=True),
        Case(7, 1000, 5, 4, 20, 0, dtype, **SHARED))),
    *(Case(50, 3, 7, 9, 40, 1, kind=kind, shift_first=first)
      for kind in KINDS if kind != "additive" for first in (True, False)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
either_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _forward(*operands):
    with fastflow.backend("cuda"):
        return forward_op.kernel("cuda", "cuda")(*operands)


def _backward(*operands):
    with fastflow.backend("cuda"):
        return backward_op.kernel("cuda", "cuda")(*operands)


def _computed(case: Case) -> list[torch.Tensor]:
    return [*_forward(*case.operands("cuda")), *flat(_backward(*case.backward_operands("cuda")))]


@every_case
def test_forward(case):
    operands = case.operands("cuda")
    assert_forward(case, _forward(*operands), operands)


@every_case
def test_backward(case):
    operands = case.backward_operands("cuda")
    assert_backward(case, _backward(*operands), operands)


@either_dtype
def test_poisoned_memory_leaves_no_trace(dtype):
    """Fresh memory holds NaN (tests/conftest.py), scratch memory too: every result is a number, and the same again."""
    case = Case(37, 10, 13, 11, 48, 2, dtype, **SHARED)
    first, second = _computed(case), _computed(case)
    assert all(tensor.isfinite().all() for tensor in first)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@either_dtype
def test_no_results(dtype):
    results = _computed(Case(5, 3, 13, 11, 48, 1, dtype, pairs=0))
    assert all(tensor.numel() == 0 or not tensor.any() for tensor in results)


@either_dtype
def test_runs_on_the_current_stream_and_in_a_graph(dtype):
    case = Case(37, 10, 13, 11, 48, 2, dtype, **SHARED)
    forward, backward = case.operands("cuda"), case.backward_operands("cuda")
    expected = [*_forward(*forward), *flat(_backward(*backward))]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        there = [*_forward(*forward), *flat(_backward(*backward))]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            replayed = [*_forward(*forward), *flat(_backward(*backward))]
    graph.replay()
    torch.cuda.synchronize()
    for results in (there, replayed):
        assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))


def test_a_width_that_no_tile_takes():
    with pytest.raises(RuntimeError, match="have 513, 5, 4 columns, expected at most 512"):
        _forward(*Case(2, 2, 5, 4, 513, 0).operands("cuda"))


def test_float64():
    with pytest.raises(RuntimeError, match="float32 passive"):
        _forward(*(value.double() if isinstance(value, torch.Tensor) else value
                   for value in Case(2, 2, 5, 4, 8, 0, torch.float64).operands("cuda")))

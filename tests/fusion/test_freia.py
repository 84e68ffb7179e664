"""What every fused FrEIA layer promises: the original's numbers and gradients both ways, and all else as it was."""

import copy
import math

import pytest
import torch
from agreement import assert_agrees, assert_keeps, leaves, outputs_and_gradients, perturbed
from freia_cases import CASES, Case, call
from oracles import relayout
from torch import Tensor, nn

from fastflow.fusion import fuse
from fastflow.fusion.layer import is_fused

pytestmark = pytest.mark.parametrize("name", CASES)
both_ways = pytest.mark.parametrize("rev", [False, True], ids=["forward", "rev"])


def made(name: str) -> Case:
    torch.manual_seed(len(name))
    case = CASES[name]()
    perturbed(case.layer)
    return case


def towards(rev: bool):
    return lambda layer, *inputs: call(layer, *inputs, rev=rev)


@both_ways
@pytest.mark.parametrize("rows", [17, 1])
def test_agrees_with_the_original(name, rev, rows):
    case = made(name)
    assert_agrees(case.layer, towards(rev), *case.inputs(rows, rev))


@both_ways
def test_an_empty_batch_has_results_of_the_right_kind(name, rev):
    case = made(name)
    full = leaves(call(case.layer, *case.inputs(2, rev), rev=rev))
    fused = fuse(copy.deepcopy(case.layer))
    outputs, grads = outputs_and_gradients(fused, towards(rev), case.inputs(0, rev))
    for empty, other in zip(outputs, full, strict=True):
        assert type(empty) is type(other)
        if isinstance(other, Tensor):
            assert empty.dtype == other.dtype
            assert empty.shape == ((0, *other.shape[1:]) if other.shape[:1] == (2,) else other.shape)
    assert all(grad is None or not grad.isnan().any() for grad in grads)


@both_ways
@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed"])
def test_any_strides(name, rev, layout):
    case = made(name)
    fused = fuse(case.layer)
    inputs = case.inputs(5, rev)
    expected, wanted = outputs_and_gradients(fused, towards(rev), inputs)
    given = [relayout(each, layout).requires_grad_() for each in inputs]
    outputs = leaves(call(fused, *given, rev=rev))
    torch.testing.assert_close(outputs, expected)
    if layout == "channels_last" and outputs[0].dim() == 4:
        assert outputs[0].is_contiguous(memory_format=torch.channels_last) or not is_kept(name)
    grads = outputs_and_gradients(fused, lambda layer, *each: call(layer, *(relayout(e, layout) for e in each),
                                                                    rev=rev), inputs)[1]
    torch.testing.assert_close(grads, wanted)

"""What every fused FrEIA layer promises: the original's numbers and gradients both ways, and all else as it was."""

import copy
import zlib

import pytest
import torch
from agreement import assert_agrees, assert_keeps, leaves, outputs_and_gradients, perturbed
from freia_cases import CASES, Case, call
from oracles import relayout
from torch import Tensor, nn

from fastflow.fusion import fuse

pytestmark = pytest.mark.parametrize("name", CASES)
both_ways = pytest.mark.parametrize("rev", [False, True], ids=["forward", "rev"])
# Layers with a four-dimensional input whose output is laid out by something else: another shape, or the shift.
LAID_OUT = ("IRevNet", "Haar", "Flatten", "GIN", "AllInOneBlock-gin")


def made(name: str) -> Case:
    torch.manual_seed(zlib.crc32(name.encode()))
    case = CASES[name]()
    perturbed(case.layer)
    return case


def pair(name: str) -> tuple[Case, nn.Module]:
    case = made(name)
    return case, fuse(copy.deepcopy(case.layer))


def towards(rev: bool):
    """FrEIA's Haar layers write to their input, so it is given a copy."""
    return lambda layer, x, *conditions: call(layer, x.clone(), *conditions, rev=rev)


@both_ways
def test_agrees_with_the_original(name, rev):
    case = made(name)
    assert_agrees(case.layer, towards(rev), *case.inputs(17, rev))


@both_ways
def test_a_single_row(name, rev):
    case, fused = pair(name)
    inputs = case.inputs(1, rev)
    torch.testing.assert_close(outputs_and_gradients(fused, towards(rev), inputs),
                               outputs_and_gradients(case.layer, towards(rev), inputs))


@both_ways
def test_an_empty_batch_has_results_of_the_right_kind(name, rev):
    case, fused = pair(name)
    full = leaves(towards(rev)(case.layer, *case.inputs(2, rev)))
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
    case, fused = pair(name)
    inputs = case.inputs(5, rev)

    def through(layer: nn.Module, *given: Tensor) -> tuple:
        return call(layer, *(relayout(each, layout) for each in given), rev=rev)

    torch.testing.assert_close(outputs_and_gradients(fused, through, inputs),
                               outputs_and_gradients(fused, towards(rev), inputs))


def test_channels_last_stay_last(name):
    case, fused = pair(name)
    inputs = tuple(relayout(each, "channels_last") for each in case.inputs(5))
    if inputs[0].dim() == 4 and not name.startswith(LAID_OUT):
        assert leaves(call(fused, *inputs))[0].is_contiguous(memory_format=torch.channels_last)


def test_everything_else_stays(name):
    case = made(name)
    assert_keeps(case.layer.eval(), towards(False), *case.inputs(4))


@both_ways
def test_writes_to_no_input(name, rev):
    case, fused = pair(name)
    inputs = case.inputs(3, rev)
    before = [each.clone() for each in inputs]
    with torch.no_grad():
        call(fused, *inputs, rev=rev)
    assert all(map(torch.equal, inputs, before))


@both_ways
def test_forward_mode_and_vmap(name, rev):
    case, fused = pair(name)
    fused.double(), case.layer.double()
    inputs = case.inputs(3, rev, torch.float64)
    directions = tuple(map(torch.randn_like, inputs))

    def tensors(layer: nn.Module, *given: Tensor) -> list[Tensor]:
        return [each for each in leaves(towards(rev)(layer, *given)) if isinstance(each, Tensor)]

    results = [torch.func.jvp(lambda *given, layer=layer: tensors(layer, *given), inputs, directions)
               for layer in (fused, case.layer)]
    torch.testing.assert_close(*results)
    rows = torch.func.vmap(lambda *row: tensors(fused, *(each[None] for each in row))[0][0])(*inputs)
    torch.testing.assert_close(rows, results[0][0][0])


@both_ways
def test_second_derivatives(name, rev):
    case, fused = pair(name)
    inputs = case.inputs(3, rev, torch.float64)
    results = []
    for layer in (fused.double(), case.layer.double()):
        given = [each.clone().requires_grad_() for each in inputs]
        x, *log_det = [each for each in leaves(towards(rev)(layer, *given)) if isinstance(each, Tensor)]
        total = x.pow(3).sum() + sum(each.sum() for each in log_det)
        (slope,) = torch.autograd.grad(total, given[:1], create_graph=True)
        wanted = [*given, *(each for each in layer.parameters() if each.requires_grad)]
        results.append(torch.autograd.grad(slope.square().sum(), wanted, allow_unused=True))
    for mine, original in zip(*results, strict=True):
        zero = torch.zeros_like(mine if mine is not None else original) if mine is not original else None
        torch.testing.assert_close(zero if mine is None else mine, zero if original is None else original)


class Casting(nn.Module):
    """A conditioner that computes in bfloat16, as autocast makes it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x)


@both_ways
def test_autocast_reaches_the_conditioners_alone(name, rev):
    case, fused = pair(name)
    inputs = case.inputs(6, rev)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            rounded = leaves(call(fused, *inputs, rev=rev))
        for child, net in list(fused.named_children()):
            if isinstance(net, nn.Sequential):
                setattr(fused, child, Casting(net))
        expected = leaves(call(fused, *inputs, rev=rev))
    for one, other in zip(rounded, expected, strict=True):
        assert torch.equal(one, other) if isinstance(other, Tensor) else one == other

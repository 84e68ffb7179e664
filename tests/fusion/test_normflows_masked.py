"""MaskedAffineFlow of normflows, fused, against the original."""

import copy

import pytest
import torch
from agreement import assert_agrees, assert_keeps
from bijection_checks import (
    BOTH,
    ChannelNet,
    Given,
    assert_compiles,
    assert_float32_from_conditioners,
    assert_left,
    assert_transforms,
    inverse,
)
from oracles import relayout
from peers import normflows
from torch import nn

from fastflow.fusion import fuse

NETS = ("st", "s", "t")


def masked(size, nets="st", dtype=torch.float32):
    mask = (torch.arange(torch.Size(size).numel()) % 3 == 0).to(dtype).view(size)
    s, t = (ChannelNet(size[0], size[0]) if name in nets else None for name in "st")
    return normflows.flows.MaskedAffineFlow(mask, t, s)


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("nets", NETS)
@pytest.mark.parametrize("size", [(1,), (7,), (4, 3, 2)])
def test_agrees(size, nets, call):
    assert_agrees(masked(size, nets), call, torch.randn(17, *size))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows, call):
    assert_agrees(masked((5,)), call, torch.randn(rows, 5))


@pytest.mark.parametrize("layout", ["strided", "transposed", "channels_last"])
def test_layouts(layout):
    assert_agrees(masked((4, 3, 2)), inverse, relayout(torch.randn(17, 4, 3, 2), layout))
    assert_agrees(masked((6,)), inverse, relayout(torch.randn(17, 6), layout))


@pytest.mark.parametrize("call", BOTH)
def test_a_mask_that_broadcasts_and_one_of_integers(call):
    original = masked((4, 1, 1))
    assert_agrees(original, call, torch.randn(5, 4, 3, 2))
    assert_agrees(masked((6,), dtype=torch.int64), call, torch.randn(5, 6))


@pytest.mark.parametrize("nets", NETS)
def test_keeps(nets):
    original = masked((6,), nets)
    assert_keeps(original, inverse, torch.randn(5, 6))
    assert torch.equal(fuse(original).b_cpu, original.b)


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("nets", NETS)
def test_transforms(nets, call):
    assert_transforms(masked((6,), nets), call, torch.randn(3, 6))


@pytest.mark.parametrize("nets", NETS)
def test_compiles(nets):
    assert_compiles(masked((6,), nets), inverse, torch.randn(5, 6))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("of", ["s", "t"])
def test_what_is_not_finite_becomes_nan(of, bad, call):
    nets = {name: Given(torch.randn(3, 4)) for name in "st"}
    nets[of].made[0, 0] = nets[of].made[1, 1] = bad  # a passive and an active element
    original = normflows.flows.MaskedAffineFlow(torch.tensor([1.0, 0.0, 1.0, 0.0]), **nets)
    fused, z = fuse(copy.deepcopy(original)), torch.randn(3, 4)
    torch.testing.assert_close(call(fused, z), call(original, z), equal_nan=True)
    assert call(fused, z)[0].isnan().sum() == 2


def test_autocast_is_the_nets():
    assert_float32_from_conditioners(masked((64,)), inverse, torch.randn(17, 64), "s", "t")


def test_constants_for_all_rows():
    nets = {name: Given(torch.randn(1, 4)) for name in "st"}
    original = normflows.flows.MaskedAffineFlow(torch.tensor([1.0, 0.0, 1.0, 0.0]), **nets)
    z = torch.randn(3, 4)
    x, log_det = original.inverse(z)
    torch.testing.assert_close(fuse(copy.deepcopy(original)).inverse(z), (x, log_det.expand(3)))


def test_other_masks_are_left():
    half = normflows.flows.MaskedAffineFlow(torch.tensor([0.5, 1.0]), nn.Identity(), nn.Identity())
    none = normflows.flows.MaskedAffineFlow(torch.tensor([0.0, 1.0]))
    assert_left(half, "its mask has values other than 0 and 1")
    assert_left(none, "it has neither s nor t")


def test_a_loaded_mask_counts():
    original, z = masked((4,)), torch.randn(3, 4)
    fused = fuse(copy.deepcopy(original))
    for mask in ([0.0, 1.0, 1.0, 0.0], [0.5, 1.0, 0.0, 0.0]):
        state = {**original.state_dict(), "b": torch.tensor([mask])}
        for module in (fused, original):
            module.load_state_dict(state)
        torch.testing.assert_close(fused.inverse(z), original.inverse(z))

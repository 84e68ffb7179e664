"""Affine couplings of normflows, fused, against the originals."""

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
    assert_transforms,
    forward,
    inverse,
)
from oracles import relayout
from peers import normflows
from torch import nn

from fastflow.fusion import fuse
from fastflow.fusion.layer import is_fused
from fastflow.fusion.swap import survey

AffineCoupling, AffineCouplingBlock = normflows.flows.AffineCoupling, normflows.flows.AffineCouplingBlock
MAPS = ("exp", "sigmoid", "sigmoid_inv", None)
MODES = ("channel", "channel_inv", "checkerboard", "checkerboard_inv")


def block(shape, scale_map="exp", mode="channel"):
    channels = shape[0]
    passive = {"channel": (channels + 1) // 2, "channel_inv": channels // 2}.get(mode, channels)
    active = channels - passive if mode in MODES[:2] else channels
    if len(shape) == 1 and mode in MODES[2:]:
        passive = active = channels // 2
    net = ChannelNet(passive, active * (1 if scale_map is None else 2))
    return AffineCouplingBlock(net, scale_map is not None, scale_map or "exp", mode)


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("scale_map", MAPS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(6,), (4, 3, 2)])
def test_block(shape, mode, scale_map, call):
    assert_agrees(block(shape, scale_map, mode), call, torch.randn(17, *shape))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("mode", MODES[:2])
def test_block_of_few_rows(mode, rows, call):
    assert_agrees(block((5,), mode=mode), call, torch.randn(rows, 5))
    assert_agrees(block((5, 2, 3), mode=mode), call, torch.randn(rows, 5, 2, 3))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("mode", MODES[2:])
@pytest.mark.parametrize("shape", [(8,), (3, 4), (3, 5, 2), (1, 2, 3, 4), (2, 1, 2, 3, 4)])
def test_checkerboard_of_any_dims(shape, mode, call):
    original = block(shape, "sigmoid", mode)
    assert_agrees(original, call, torch.randn(5, *shape))
    assert_agrees(original, call, torch.randn(1, *shape))
    z, log_det = call(fuse(original), torch.randn(0, *shape))  # of which the original cannot infer a shape
    assert z.shape == (0, *shape)
    assert log_det.shape == (0,)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["strided", "transposed", "channels_last"])
def test_layouts(layout, mode):
    assert_agrees(block((4, 3, 2), "sigmoid", mode), inverse, relayout(torch.randn(17, 4, 3, 2), layout))
    assert_agrees(block((6,), "sigmoid", mode), forward, relayout(torch.randn(17, 6), layout))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("scale_map", MAPS)
def test_coupling_of_two_parts(scale_map, call):
    original = AffineCoupling(ChannelNet(3, 2 if scale_map is None else 4), scale_map is not None, scale_map or "exp")
    for rows in (0, 1, 17):
        assert_agrees(original, lambda m, a, b: call(m, [a, b]), torch.randn(rows, 3), torch.randn(rows, 2))
    assert_agrees(original, lambda m, a, b: call(m, [a, b]), torch.randn(5, 3, 2, 2), torch.randn(5, 2, 2, 2))


@pytest.mark.parametrize("mode", MODES)
def test_keeps(mode):
    assert_keeps(block((4, 3, 2), "exp", mode), inverse, torch.randn(5, 4, 3, 2))


def test_coupling_keeps():
    original = AffineCoupling(ChannelNet(3, 4))
    assert_keeps(original, lambda m, a, b: m.inverse([a, b]), torch.randn(5, 3), torch.randn(5, 2))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("mode", MODES)
def test_transforms(mode, call):
    assert_transforms(block((4, 3, 2), "sigmoid_inv", mode), call, torch.randn(3, 4, 3, 2))
    assert_transforms(block((6,), "exp", mode), call, torch.randn(3, 6))


@pytest.mark.parametrize("mode", ["channel", "checkerboard"])
def test_compiles(mode):
    assert_compiles(block((4, 3, 2), "sigmoid", mode), inverse, torch.randn(5, 4, 3, 2), fewer_rows=1)


@pytest.mark.parametrize("scale_map", MAPS)
def test_autocast_is_the_conditioners(scale_map):
    assert_float32_from_conditioners(block((64,), scale_map), inverse, torch.randn(17, 64), "flows.1.param_map")


def test_a_very_negative_scale_keeps_its_log():
    fused = fuse(AffineCoupling(Given(torch.tensor([[0.0, -200.0]])), scale_map="sigmoid"))
    _, log_det = fused.inverse([torch.zeros(1, 1), torch.ones(1, 1)])
    torch.testing.assert_close(log_det, torch.tensor([-198.0]))  # log(sigmoid(-198)) is -inf


@pytest.mark.parametrize("mode", MODES[2:])
def test_an_odd_row_has_no_checkerboard(mode):
    with pytest.raises(ValueError, match=r"z has shape \(B, 4, 3\), expected an even last dim"):
        fuse(block((4, 3), mode=mode)).inverse(torch.randn(2, 4, 3))


def test_a_row_of_one_channel_has_no_halves():
    original = AffineCouplingBlock(nn.Identity())
    for module in (original, fuse(copy.deepcopy(original))):
        with pytest.raises(ValueError, match=r"unpack|selects 0 of 1 channels"):
            module.inverse(torch.randn(2, 1))


def test_more_dims_than_kernels_take():
    for mode in MODES:
        assert_agrees(block((4, 1, 2, 1, 2), mode=mode), inverse, torch.randn(3, 4, 1, 2, 1, 2))


def test_parts_that_are_not_the_librarys_are_left():
    class Split(normflows.flows.Split):
        def forward(self, z):
            return super().forward(z)

    changed = block((4,))
    changed.flows[0] = Split()
    other = block((4,))
    other.flows[2].mode = "channel_inv"
    odd = block((4,))
    odd.flows[1].scale_map = "softplus"
    hooked = block((4,))
    hooked.flows[1].register_forward_hook(lambda *_: None)
    longer = block((4,))
    longer.flows.append(normflows.flows.Permute(4))
    for module, reason in ((changed, "the code of its parts is not that of a known normflows release"),
                           (other, "it splits by channel and merges by channel_inv"),
                           (hooked, "flows.1 has a hook or a forward of its own, which would not be called"),
                           (odd, "its scale map is 'softplus'"),
                           (longer, "its flows are Split, AffineCoupling, Merge, Permute, expected")):
        found = survey(module)[0]
        assert found.reason.startswith(reason)
        assert not is_fused(fuse(module))


def test_a_part_fused_before_its_block():
    original = block((4,))
    fused = copy.deepcopy(original)
    fuse(fused.flows[1])
    fuse(fused)
    assert is_fused(fused)
    x = torch.randn(5, 4)
    torch.testing.assert_close(fused.inverse(x), original.inverse(x))

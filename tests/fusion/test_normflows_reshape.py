"""Squeeze, Split and Merge of normflows, fused, against the originals."""

import pytest
import torch
from agreement import assert_agrees, assert_keeps
from bijection_checks import BOTH, assert_compiles, assert_left, assert_transforms, forward, inverse
from oracles import relayout
from peers import normflows

from fastflow.fusion import fuse

Split, Merge, Squeeze = normflows.flows.Split, normflows.flows.Merge, normflows.flows.Squeeze
MODES = ("channel", "channel_inv", "checkerboard", "checkerboard_inv")
IMAGES = [(4, 4, 4), (4, 2, 16), (8, 16, 8)]


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("shape", IMAGES)
def test_squeeze(shape, rows, call):
    assert_agrees(Squeeze(), call, torch.randn(rows, *shape))


@pytest.mark.parametrize("layout", ["strided", "transposed", "channels_last"])
def test_squeeze_of_any_layout(layout):
    for shape in IMAGES:
        x = relayout(torch.randn(3, *shape), layout)
        assert_agrees(Squeeze(), inverse, x)
        assert fuse(Squeeze())(x)[0].is_contiguous()


@pytest.mark.parametrize("call", BOTH)
def test_squeeze_keeps(call):
    assert_keeps(Squeeze(), call, torch.randn(3, *IMAGES[0]))
    assert_transforms(Squeeze(), call, torch.randn(3, *IMAGES[0]))
    assert_compiles(Squeeze(), call, torch.randn(3, *IMAGES[0]))


@pytest.mark.parametrize("shape", [(6,), (4, 6), (4, 3, 2), (2, 1, 2, 3, 4)])
@pytest.mark.parametrize("mode", MODES)
def test_split_and_merge(mode, shape):
    for x in (torch.randn(5, *shape), torch.randn(1, *shape), torch.randn(shape[0], 5, *shape[1:]).transpose(0, 1)):
        assert_agrees(Split(mode), forward, x)
        assert_agrees(Merge(mode), inverse, x)
        z1, z2 = Split(mode)(x)[0]
        assert_agrees(Merge(mode), lambda m, *z: m(z), z1, z2)
        assert_agrees(Split(mode), lambda m, *z: m.inverse(z), z1, z2)


@pytest.mark.parametrize("mode", MODES[2:])
def test_checkerboard_of_no_rows(mode):
    (z1, z2), log_det = fuse(Split(mode))(torch.randn(0, 4, 6))
    assert z1.shape == z2.shape == (0, 4, 3)
    assert log_det == 0
    assert fuse(Merge(mode))([z1, z2])[0].shape == (0, 4, 6)


@pytest.mark.parametrize("mode", MODES)
def test_split_keeps(mode):
    x = torch.randn(3, 4, 6)
    assert_keeps(Split(mode), forward, x)
    assert_keeps(Merge(mode), inverse, x)


@pytest.mark.parametrize("mode", MODES[2:])
def test_split_transforms_and_compiles(mode):
    x = torch.randn(3, 4, 6)
    assert_transforms(Split(mode), forward, x)
    assert_transforms(Merge(mode), lambda m, x: m(x.chunk(2, -1)), x)
    assert_compiles(Split(mode), forward, x)
    assert_compiles(Merge(mode), lambda m, x: m(x.chunk(2, -1)), x)


def test_parts_may_be_written_to():
    z1, z2 = fuse(Split("checkerboard"))(torch.randn(3, 4, 6))[0]
    assert z1.mul_(2).is_contiguous()
    assert z2.view(-1).shape == (36,)


def test_an_order_made_without_gradients_serves_with_them():
    split, x = fuse(Split("checkerboard")), torch.randn(2, 2, 14, requires_grad=True)
    with torch.inference_mode():
        split(x)
    split(x)[0][0].sum().backward()
    assert x.grad.sum() == 28


def test_an_unknown_mode_is_left():
    for kind in (Split, Merge):
        assert_left(kind("halves"), "its mode is 'halves'")

"""Squeeze: every order, factor and choice of pixels by the index formula, inverse, refusals."""

import pytest
import torch
from bijections import assert_inverts, assert_log_det

from fastflow.nn import FlowSequential, Squeeze
from fastflow.ops import squeeze

ORDERS = pytest.mark.parametrize("order", ["position", "channel"])
INTERLEAVED = pytest.mark.parametrize("interleaved", [False, True], ids=["neighbours", "interleaved"])
FACTORS = pytest.mark.parametrize("factor", [2, 3, 4])


@ORDERS
@INTERLEAVED
@FACTORS
def test_index_formula(order, factor, interleaved):
    lines, columns = 2, 3
    x = torch.randn(2, 3, factor * lines, factor * columns)
    z = squeeze(x, order=order, factor=factor, interleaved=interleaved)
    assert z.shape == (2, 3 * factor**2, lines, columns)
    for c in range(3):
        for dy in range(factor):
            for dx in range(factor):
                block = factor * dy + dx
                channel = block * 3 + c if order == "position" else factor**2 * c + block
                for i in range(lines):
                    for j in range(columns):
                        h, w = (lines * dy + i, columns * dx + j) if interleaved else (factor * i + dy, factor * j + dx)
                        assert torch.equal(z[:, channel, i, j], x[:, c, h, w])


def test_defaults():
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(squeeze(x), squeeze(x, order="position", factor=2, interleaved=False))
    assert torch.equal(Squeeze()(x)[0], squeeze(x))


@pytest.mark.parametrize("factor", [2, 3])
def test_channel_order_is_pixel_unshuffle(factor):
    x = torch.randn(2, 3, 6, 12)
    assert torch.equal(squeeze(x, order="channel", factor=factor), torch.nn.functional.pixel_unshuffle(x, factor))


@ORDERS
@INTERLEAVED
@FACTORS
def test_inverts(order, factor, interleaved):
    layer = Squeeze(order, factor, interleaved)
    x = torch.randn(3, 2, 2 * factor, 3 * factor)
    assert_inverts(layer, x)
    assert_inverts(layer, x[:0])
    assert_log_det(layer, torch.randn(1, 1, 2 * factor, factor, dtype=torch.float64))


@ORDERS
@INTERLEAVED
@FACTORS
def test_undo(order, factor, interleaved):
    there, back = (Squeeze(order, factor, interleaved, undo=undo) for undo in (False, True))
    x = torch.randn(2, 2, 2 * factor, 3 * factor)
    z = there(x)[0]
    assert torch.equal(back(z)[0], x)
    assert torch.equal(back.inverse(x)[0], z)
    assert_inverts(back, z)
    flow = FlowSequential([there, back], x.shape[1:])
    assert flow.last_shape == x.shape[1:]
    assert torch.equal(flow(x)[0], x)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"squeeze: x has shape \(1, 2, 7, 7\), expected even height and width"):
        squeeze(torch.zeros(1, 2, 7, 7))
    with pytest.raises(ValueError, match=r"squeeze: x has shape .* expected channels that are a multiple of 4"):
        squeeze(torch.zeros(1, 2, 7, 7), inverse=True)
    with pytest.raises(ValueError, match=r"\(1, 2, 6, 5\), expected height and width that are multiples of 3"):
        squeeze(torch.zeros(1, 2, 6, 5), factor=3)
    with pytest.raises(ValueError, match=r"squeeze: x has shape .* expected channels that are a multiple of 9"):
        squeeze(torch.zeros(1, 6, 7, 7), factor=3, inverse=True)
    with pytest.raises(ValueError, match="squeeze: x has shape"):
        squeeze(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="squeeze: order is 'row', expected one of position, channel"):
        squeeze(torch.zeros(1, 2, 4, 4), order="row")
    with pytest.raises(ValueError, match="squeeze: factor is 1, expected an integer of at least 2"):
        squeeze(torch.zeros(1, 2, 4, 4), factor=1)
    with pytest.raises(ValueError, match="Squeeze: order is 'row'"):
        Squeeze("row")
    with pytest.raises(ValueError, match=r"Squeeze: factor is 2\.0, expected an integer"):
        Squeeze(factor=2.0)
    with pytest.raises(TypeError, match="squeeze: x is NoneType"):
        squeeze(None)
    with pytest.raises(ValueError, match=r"layer 0 \(Squeeze\) .* \(1, 6, 6\): it takes .* multiples of 4"):
        FlowSequential([Squeeze(factor=4)], (1, 6, 6))
    with pytest.raises(ValueError, match=r"layer 0 \(Squeeze\) .* it takes \(C, H, W\) with C a multiple of 16"):
        FlowSequential([Squeeze(factor=4, undo=True)], (4, 6, 6))

"""Squeeze: both orders by their index formula, inverse, refusals."""

import pytest
import torch
from bijections import assert_inverts, assert_log_det

from fastflow.nn import Squeeze
from fastflow.ops import squeeze


@pytest.mark.parametrize("order", ["position", "channel"])
def test_index_formula(order):
    x = torch.randn(2, 3, 4, 6)
    z = squeeze(x, order=order)
    for c in range(3):
        for dy in range(2):
            for dx in range(2):
                place = (2 * dy + dx) * 3 + c if order == "position" else 4 * c + 2 * dy + dx
                assert torch.equal(z[:, place], x[:, c, dy::2, dx::2])


def test_channel_order_is_pixel_unshuffle():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(squeeze(x, order="channel"), torch.nn.functional.pixel_unshuffle(x, 2))


@pytest.mark.parametrize("order", ["position", "channel"])
def test_inverts(order):
    assert_inverts(Squeeze(order), torch.randn(3, 2, 4, 6))
    assert_log_det(Squeeze(order), torch.randn(1, 1, 4, 2, dtype=torch.float64))
    assert_inverts(Squeeze(order), torch.randn(0, 2, 4, 6))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"squeeze: x has shape \(1, 2, 7, 7\), expected even height and width"):
        squeeze(torch.zeros(1, 2, 7, 7))
    with pytest.raises(ValueError, match=r"squeeze: x has shape .* expected channels that are a multiple of 4"):
        squeeze(torch.zeros(1, 2, 7, 7), inverse=True)
    with pytest.raises(ValueError, match="squeeze: x has shape"):
        squeeze(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="squeeze: order is 'row', expected one of position, channel"):
        squeeze(torch.zeros(1, 2, 4, 4), order="row")
    with pytest.raises(ValueError, match="Squeeze: order is 'row'"):
        Squeeze("row")
    with pytest.raises(TypeError, match="squeeze: x is NoneType"):
        squeeze(None)

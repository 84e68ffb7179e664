"""Split: which channels or positions are active, what the conditioner reads, and the errors of bad settings."""

import re

import pytest
import torch
from coupling_cases import CHANNEL_SPLITS, active_positions, every_split

from fastflow.nn import Split


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("split", [split for split in CHANNEL_SPLITS if split.passive is None], ids=repr)
def test_channel_splits_cover_every_channel_once(split, channels):
    x = torch.arange(float(channels)).expand(2, channels).clone()
    passive = split.passive_part(x)
    active = x[:, split.active_slice(channels)]
    assert sorted(torch.cat([active, passive], dim=1)[0].tolist()) == x[0].tolist()
    assert (active.shape[1], passive.shape[1]) == (split.active_channels(channels), split.passive_channels(channels))
    assert passive.data_ptr() - x.data_ptr() < x.numel() * x.element_size()
    assert passive._base is x


def test_which_channels_each_split_transforms():
    def active(split, channels):
        return list(range(channels))[split.active_slice(channels)]

    assert active(Split.halves(), 5) == [3, 4]
    assert active(Split.halves("first"), 5) == [0, 1, 2]
    assert active(Split.halves(passive=1), 5) == [1, 2, 3, 4]
    assert active(Split.halves("first", passive=1), 5) == [0, 1, 2, 3]
    assert active(Split.halves(passive=0), 1) == [0]
    assert active(Split.interleaved(), 5) == [1, 3]
    assert active(Split.interleaved("even"), 5) == [0, 2, 4]


@pytest.mark.parametrize("shape", [(5,), (4,), (2, 7), (3, 7, 7), (1, 4, 6), (2, 3, 2, 3)], ids=str)
@pytest.mark.parametrize("parity", [0, 1])
def test_checkerboard(shape, parity):
    passive = Split.checkerboard(shape, parity=parity).passive_mask
    assert passive.shape == shape
    for index in torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist():
        position = index if len(shape) == 1 else index[1:]
        assert passive[tuple(index)].item() == (sum(position) % 2 != parity)


def test_conditioner_never_sees_the_active_part():
    shape = (3, 4, 5)
    for split in every_split(shape):
        x = torch.randn(2, *shape)
        active = active_positions(split, shape)
        for value in (1e30, torch.inf, torch.nan):
            assert torch.equal(split.passive_part(x), split.passive_part(torch.where(active, value, x))), (split, value)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 3, 2, 4, 5), (7, 3)], ids=str)
def test_a_mask_split_keeps_the_memory_format(shape):
    split = Split.checkerboard(shape[1:])
    contiguous = torch.randn(shape)
    other = {5: torch.channels_last_3d, 4: torch.channels_last}.get(len(shape))
    for x in (contiguous, contiguous.to(memory_format=other) if other else contiguous.T.contiguous().T):
        x.requires_grad_()
        passive = split.passive_part(x)
        assert passive.stride() == x.stride()
        assert torch.autograd.grad(passive, x, torch.ones_like(x))[0].stride() == x.stride()
        assert torch.equal(passive, x * split.passive_mask)


@pytest.mark.parametrize("split", [*CHANNEL_SPLITS, Split.checkerboard((3, 5), 1)], ids=repr)
def test_split_repr_rebuilds_it(split):
    rebuilt = eval(repr(split), {"Split": Split})
    shape = (3, 5)
    assert torch.equal(active_positions(rebuilt, shape), active_positions(split, shape))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Split.halves("last"), ValueError, "Split.halves: active is 'last', expected one of 'first', 'second'"),
        (lambda: Split.halves(passive=-1), ValueError, "Split.halves: passive is -1, expected a number of channels"),
        (lambda: Split.halves(passive=0.5), ValueError, "Split.halves: passive is 0.5, expected a number of channels"),
        (lambda: Split.interleaved("first"), ValueError, "Split.interleaved: active is 'first', expected one of 'odd'"),
        (lambda: Split.mask([True]), TypeError, "Split.mask: mask is a list, expected a bool tensor [C, *spatial]"),
        (lambda: Split.mask(torch.ones(3)), TypeError, "Split.mask: mask has dtype torch.float32, expected torch.bool"),
        (lambda: Split.mask(torch.tensor(True)), ValueError, "Split.mask: mask has shape (), expected 1 to 4 dims"),
        (lambda: Split.checkerboard((1, 4, 4), 2), ValueError, "Split.checkerboard: parity is 2, expected one of 0, 1"),
        (lambda: Split.checkerboard(()), ValueError, "Split.checkerboard: shape is (), expected (C, *spatial) or (D,)"),
    ],
)
def test_bad_settings(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()

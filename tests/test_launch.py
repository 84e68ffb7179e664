"""How Triton kernels are laid over tensors: launch configurations, and the order in which features are walked."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from oracles import LAYOUTS, relayout

from fastflow.kernels.launch import Launch, PixelTiles, column_reduction, pixel_tiles, row_reduction
from fastflow.kernels.layout import plan

sizes = st.one_of(st.integers(1, 64), st.integers(1, 100_000))
shapes = {"rows": sizes, "features": sizes, "itemsize": st.sampled_from([2, 4, 8]),
          "multiprocessors": st.sampled_from([4, 108, 132])}  # fmt: skip


@settings(deadline=None, derandomize=True)
@given(reduces=st.booleans(), **shapes)
def test_every_launch_is_sound(rows, features, itemsize, multiprocessors, reduces):
    launches = (row_reduction(rows, features, itemsize, multiprocessors),
                column_reduction(rows, features, itemsize, multiprocessors, reduces))  # fmt: skip
    for launch in launches:
        for size in (launch.block_rows, launch.block_features, launch.num_warps):
            assert size & (size - 1) == 0
        elements = launch.block_rows * launch.block_features / (32 * launch.num_warps)
        assert elements <= (4 if itemsize == 8 else 8)
        assert launch.num_warps <= 4
        assert 1 <= launch.row_programs <= -(-rows // launch.block_rows)
        assert 1 <= launch.feature_programs <= -(-features // launch.block_features)
        assert launch.block_features < 2 * features
    by_rows, by_columns = launches
    assert by_rows.row_programs == -(-rows // by_rows.block_rows)
    assert by_rows.feature_programs == 1 or rows < multiprocessors
    assert by_columns.feature_programs == -(-features // by_columns.block_features)
    if rows >= multiprocessors:
        assert by_rows.row_programs >= multiprocessors
    if reduces:
        assert (by_columns.row_programs - 1) * by_columns.feature_programs <= 8 * multiprocessors


@pytest.mark.parametrize(
    ("shape", "launch"),
    [
        ((65536, 784, 4), Launch(4, 256, 4, 16384, 1)),
        ((65536, 64, 4), Launch(16, 64, 4, 4096, 1)),
        ((65536, 784, 8), Launch(2, 256, 4, 32768, 1)),
        ((256, 4704, 2), Launch(1, 1024, 4, 256, 1)),
        ((64, 6144, 4), Launch(1, 1024, 4, 64, 5)),
        ((1, 32, 4), Launch(1, 32, 1, 1, 1)),
        ((1, 10**6, 4), Launch(1, 1024, 4, 1, 264)),
    ],
    ids=str,
)
def test_row_reduction_on_132_multiprocessors(shape, launch):
    assert row_reduction(*shape, 132) == launch


def test_column_reduction_limits_partial_results_only_where_it_reduces():
    assert column_reduction(65536, 784, 4, 132, reduces=False).row_programs == 16384
    assert column_reduction(65536, 784, 4, 132, reduces=True).row_programs == 264


@settings(deadline=None, derandomize=True)
@given(pixels=st.one_of(st.integers(1, 64), st.integers(1, 10**10)), channels=st.integers(1, 64),
       itemsize=shapes["itemsize"], multiprocessors=shapes["multiprocessors"], reduces=st.booleans())  # fmt: skip
def test_every_launch_on_pixels_is_sound(pixels, channels, itemsize, multiprocessors, reduces):
    launch = pixel_tiles(pixels, channels, itemsize, multiprocessors, reduces)
    for size in (launch.block_channels, launch.block_pixels, launch.num_warps):
        assert size & (size - 1) == 0
    assert channels <= launch.block_channels < 2 * channels
    assert launch.block_pixels >= 16
    assert launch.num_warps <= 8
    elements = launch.block_channels * launch.block_pixels / (32 * launch.num_warps)
    assert elements <= (4 if reduces else 8 if itemsize == 8 else 16)
    blocks = -(-pixels // launch.block_pixels)
    if not reduces:
        assert launch.programs == blocks
        return
    assert 1 <= launch.programs <= blocks
    assert launch.programs * launch.num_warps <= 32 * multiprocessors
    assert launch.programs * channels**2 * 4 <= 64 * 2**10 * 4 * multiprocessors


@pytest.mark.parametrize(
    ("arguments", "launch"),
    [
        ((50176, 24, 4, 132, False), PixelTiles(32, 64, 4, 784)),
        ((65536, 64, 4, 132, False), PixelTiles(64, 32, 8, 2048)),
        ((65536, 64, 8, 132, False), PixelTiles(64, 16, 8, 4096)),
        ((65536, 2, 4, 132, False), PixelTiles(2, 256, 4, 256)),
        ((64, 2, 4, 132, False), PixelTiles(2, 16, 4, 4)),
        ((50176, 24, 4, 132, True), PixelTiles(32, 16, 4, 528)),
        ((65536, 64, 2, 132, True), PixelTiles(64, 16, 8, 264)),
        ((65536, 2, 4, 132, True), PixelTiles(2, 64, 1, 1024)),
    ],
    ids=str,
)
def test_pixel_tiles_on_132_multiprocessors(arguments, launch):
    assert pixel_tiles(*arguments) == launch


SLICES = [slice(None), slice(3, None), slice(0, 3), slice(1, None, 2), slice(0, None, 2)]
SHAPES = [(2, 6), (2, 6, 5), (2, 6, 1, 4), (2, 6, 3, 2, 2)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "active"),
    [*itertools.product(SHAPES, SLICES), ((2, 1, 3, 4), slice(None)), ((2, 1, 3, 4), slice(0, None, 2))],
    ids=str,
)
def test_plan_walks_every_feature_once_and_the_same_one_in_every_tensor(shape, active, layout):
    x = relayout(torch.arange(math.prod(shape), dtype=torch.float32).view(shape), layout)
    start, _, step = active.indices(shape[1])
    for other in LAYOUTS:
        part = relayout(x[:, active].contiguous(), other)
        planned = plan(shape[1:], start, step, part.shape[1], x.stride()[1:], None, part.stride()[1:])
        assert planned.strides[1] is None
        found, pairs = [], 0
        for place in itertools.product(*map(range, planned.sizes)):
            found.append(at(x, place, planned.strides[0]))
            index, rest = divmod(place[planned.channel] - planned.start, planned.step)
            if rest == 0 and 0 <= index < planned.active:
                place = (*place[: planned.channel], index, *place[planned.channel + 1 :])
                assert at(part, place, planned.strides[2]) == found[-1]
                pairs += 1
        assert sorted(found) == x[0].flatten().tolist()
        assert pairs == part[0].numel()


def at(tensor, place, strides):
    """The element of the first row that a kernel reads at `place` of the walk."""
    offset = sum(index * stride for index, stride in zip(place, strides, strict=True))
    return tensor.as_strided((), (), tensor.storage_offset() + offset).item()


def test_plan_merges_what_is_contiguous():
    whole, half = (784, 49, 7, 1), (392, 49, 7, 1)
    assert plan((16, 7, 7), 8, 1, 8, whole[1:], half[1:]).sizes == (784,)
    assert plan((16, 7, 7), 8, 1, 8, whole[1:], half[1:]).start == 8 * 49
    assert plan((16, 7, 7), 1, 2, 8, whole[1:], half[1:]).sizes == (16, 49)
    channels_last = plan((16, 7, 7), 8, 1, 8, (1, 112, 16), (1, 56, 8))
    assert (channels_last.sizes, channels_last.channel) == ((49, 16), 1)
    assert plan((16, 7, 7), 0, 1, 16, (1, 112, 16), (1, 112, 16)).sizes == (784,)


def test_a_row_beyond_32_bits_is_refused():
    with pytest.raises(ValueError, match=r"shape \(65536, 65536\), 4294967296 features, expected fewer"):
        plan((2**16, 2**16), 0, 1, 2**16, (2**16, 1))

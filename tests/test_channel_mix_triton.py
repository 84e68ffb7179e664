"""The Triton kernels of channel_mix, by the tests of every other backend, and where programs share the pixels."""

import numpy as np
import pytest
import torch
from channel_mix_cases import (  # noqa: F401, collected here to run on this file's backend
    check,
    everything,
    make,
    test_empty,
    test_kernels,
    test_pixels_do_not_see_each_other,
    test_results_are_laid_out_like_x,
    test_results_that_nothing_depends_on,
    test_same_bits_again,
    test_squeezes_what_it_reads_and_undoes_what_it_writes,
    test_without_center_shift_and_log_det,
)
from oracles import assert_three_way
from triton_process import DEVICE, INTERPRETED, MARKS

from fastflow._backend import backend as forced_backend
from fastflow.kernels import channel_mix_cuda
from fastflow.kernels.launch import multiprocessors, pixel_tiles
from fastflow.ops.channel_mix import map_channels, reference

pytestmark = MARKS


@pytest.fixture(autouse=True)
def backend():
    """Every call by the Triton kernels, every new tensor on their device."""
    with torch.device(DEVICE), forced_backend("triton"):
        yield "triton"


@pytest.mark.parametrize("channels", [3, 8, 12, 24, 64])
def test_programs_of_the_backward_take_several_blocks(channels):
    processors = multiprocessors(torch.empty(0).device)
    launch = pixel_tiles(10**9, channels, 4, processors, reduces=True)
    rows = launch.programs * launch.block_pixels // 49 * 3 // 2 + 1
    x, log_det, given, weights = make((rows, channels, 7, 7), torch.float32)
    check(everything(map_channels, x, given, log_det, 0, weights), x, given, log_det, weights)


@pytest.mark.skipif(not INTERPRETED, reason="the memory is never touched, which only the CPU allows")
@pytest.mark.parametrize("strides", [(2**30 + 2, 3, 1), (1, 2**30 + 2, 3), (9, 3, 2**30 + 2)], ids=str)
def test_offsets_beyond_32_bits(strides):
    memory = torch.from_numpy(np.zeros(2**32 + 64, np.uint8)).view(torch.float16)
    x, log_det, given, weights = make((3, 3, 3), torch.float16)
    moved = memory.as_strided((3, 3, 3), strides).copy_(x)
    check(everything(map_channels, moved, given, log_det, 0, weights), x, given, log_det, weights)


if not INTERPRETED:

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(34_000_003, 64), (700_001, 64, 7, 7)], ids=str)
    def test_more_than_two_to_the_31_elements(shape):
        x = torch.randn(shape, dtype=torch.bfloat16)
        matrix, shift, own = torch.randn(64, 64), torch.randn(64), torch.randn(())
        z, _, total = channel_mix_cuda(x, None, matrix, None, shift, own, None, 0, 0)
        assert torch.equal(total, own.expand(shape[0]))
        for part in (slice(0, 5), slice(shape[0] // 2, shape[0] // 2 + 5), slice(-5, None)):
            truth = reference(x[part].double(), None, matrix.double(), None, shift.double(), own.double(), None, 0,
                              0)[0]
            eager = reference(x[part], None, matrix, None, shift, own, None, 0, 0)[0]
            assert_three_way(z[part], eager, truth, name="z")

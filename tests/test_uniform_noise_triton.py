"""The Triton kernel of uniform_noise: the bits of the definition, and a captured graph that draws anew."""

import pytest
import torch
from test_uniform_noise import (  # noqa: F401, collected here to run on this file's backend
    test_a_number_a_row,
    test_kernels_draw_the_bits_of_the_definition,
    test_nothing_to_draw,
)
from triton_process import DEVICE, INTERPRETED, MARKS

from fastflow._backend import backend as forced_backend
from fastflow.nn import NoiseStream
from fastflow.ops import uniform_noise
from fastflow.ops.uniform_noise import reference

pytestmark = MARKS


@pytest.fixture(autouse=True)
def backend():
    """Every call by the Triton kernels, every new tensor on their device."""
    with torch.device(DEVICE), forced_backend("triton"):
        yield "triton"


@pytest.mark.parametrize("shape", [(13 if INTERPRETED else 70001, 600), (3, 5000)], ids=str)
def test_many_blocks(shape):
    rows = torch.arange(shape[0]) * 2**31
    expected = reference(torch.tensor(3), torch.tensor(4), rows, shape[1], torch.float32)
    assert torch.equal(uniform_noise(shape, seed=3, step=4, rows=rows), expected)


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a device")
def test_replays_of_a_captured_graph_draw_what_eager_draws():
    rows = torch.arange(64) + 2**32
    eager, captured = NoiseStream(seed=2**64 - 9), NoiseStream(seed=2**64 - 9)
    expected = [eager.draw((64, 3, 8, 8), rows) for _ in range(3)]
    assert torch.equal(captured.draw((64, 3, 8, 8), rows), expected[0])  # compiles the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise = captured.draw((64, 3, 8, 8), rows)
    assert captured.step.item() == 1  # capturing draws nothing
    for step in (1, 2):
        graph.replay()
        assert torch.equal(noise, expected[step])
    assert not torch.equal(expected[1], expected[2])
    assert captured.step.item() == 3
    captured.step.fill_(0)
    graph.replay()
    assert torch.equal(noise, expected[0])

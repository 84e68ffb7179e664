"""Dequantisation: levels and noise to [0, 1) and back, what it refuses, and the density of uniform noise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastflow.nn import Dequantize
from fastflow.ops import dequantize, quantize


@given(levels=st.integers(2, 256), seed=st.integers(0, 999))
def test_quantize_undoes_dequantize(levels, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (2, 1, 3, 3), generator=generator)
    noise = torch.rand(x.shape, generator=generator)
    v = dequantize(x, noise, levels=levels)
    assert v.min() >= 0
    assert v.max() <= 1
    middle = dequantize(x, levels=levels)
    assert torch.equal(quantize(middle, levels=levels), x)
    # (x + noise) rounds to x + 1 in float32 for the largest noise; in float64 it does not.
    assert torch.equal(quantize(dequantize(x, noise.double(), levels=levels), levels=levels), x)


def test_values():
    x = torch.tensor([[0, 8, 16]], dtype=torch.uint8)
    assert torch.equal(dequantize(x, levels=17), torch.tensor([[0.5, 8.5, 16.5]]) / 17)
    noise = torch.tensor([[0.0, 0.25, 0.75]])
    assert torch.equal(dequantize(x, noise, levels=17), torch.tensor([[0.0, 8.25, 16.75]]) / 17)
    assert torch.equal(Dequantize(17)(x, noise), dequantize(x, noise, levels=17))
    assert torch.equal(Dequantize(17).inverse(torch.tensor([-0.1, 0.0, 0.5, 1.0])), torch.tensor([0, 0, 8, 16]))


def test_dtypes():
    x = torch.tensor([[3]])
    assert dequantize(x, levels=17).dtype == torch.float32
    assert dequantize(x, torch.rand(1, 1).double(), levels=17).dtype == torch.float64
    assert dequantize(x, levels=17, dtype=torch.float64).item() == 3.5 / 17
    assert dequantize(torch.rand(1, 1), levels=17, dtype=torch.float64).dtype == torch.float64


def test_floats_pass_as_already_dequantised():
    x = torch.rand(2, 3)
    assert dequantize(x, levels=17) is x


def test_empty_batch():
    assert dequantize(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), levels=17).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(("x", "noise", "levels", "error", "message"), [
    (torch.tensor([[17]]), None, 17, ValueError, "dequantize: x has values from 17 to 17, expected 0 to 16 for 17"),
    (torch.tensor([[-1, 3]]), None, 17, ValueError, "x has values from -1 to 3, expected 0 to 16"),
    (torch.tensor([[0.0, 255.0]]), None, 256, ValueError, "x has values from 0 to 255, expected 0 to 1; give grey"),
    (torch.tensor([[math.nan]]), None, 256, ValueError, "x has values from nan"),
    (torch.rand(2, 3), torch.rand(2, 3), 256, ValueError, "noise is given for torch.float32 x"),
    (torch.zeros(2, 3).long(), torch.rand(2, 4), 256, ValueError, r"noise has shape \(2, 4\), expected \(2, 3\)"),
    (torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), 256, TypeError, "noise has dtype torch.int64"),
    (torch.zeros(2, 3).bool(), None, 256, TypeError, "x has dtype torch.bool"),
    (torch.zeros(2, 3).long(), None, 1, ValueError, "levels is 1, expected at least 2"),
    ([1], None, 17, TypeError, "x is list, expected a Tensor"),
])
def test_bad_arguments(x, noise, levels, error, message):
    with pytest.raises(error, match=message):
        dequantize(x, noise, levels=levels)

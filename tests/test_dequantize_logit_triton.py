"""The Triton kernel of dequantize_logit, by the tests of every other backend, and rows that are shared by programs."""

import pytest
import torch
from test_dequantize_logit import (  # noqa: F401, collected here to run on this file's backend
    check,
    test_every_integer_dtype,
    test_kernels,
    test_noise_that_rounds_to_the_next_level_reaches_the_end,
    test_nothing_to_do,
    test_rows_may_be_cut_and_ordered_at_will,
)
from triton_process import DEVICE, INTERPRETED, MARKS, erring_division

from fastflow._backend import backend as forced_backend

pytestmark = MARKS


@pytest.fixture(autouse=True)
def backend():
    """Every call by the Triton kernels, every new tensor on their device."""
    with torch.device(DEVICE), forced_backend("triton"):
        yield "triton"


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("shape", [(3, 5000), (13 if INTERPRETED else 1601, 600)], ids=["shared rows", "many blocks"])
def test_blocks(shape, keyed):
    check(torch.randint(256, shape, dtype=torch.uint8), 256, 0.05, torch.float32, keyed)


@pytest.mark.skipif(not INTERPRETED, reason="replaces the division of the interpreter")
@pytest.mark.parametrize("levels", [17, 256])
def test_tolerance_holds_with_the_division_of_the_hardware(levels, monkeypatch):
    erring_division(monkeypatch)
    check(torch.randint(levels, (13, 301), dtype=torch.uint8), levels, 0.05, torch.float32, True)

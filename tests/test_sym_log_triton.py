"""The Triton kernels of sym_log, by the tests of every other backend, and rows that are shared by programs."""

import pytest
import torch
from oracles import assert_three_way
from test_sym_log import (  # noqa: F401, collected here to run on this file's backend
    everything,
    formulas,
    test_extremes,
    test_kernels,
    test_relative_precision_of_every_element,
    test_slope_at_zero,
)
from triton_process import DEVICE, INTERPRETED, MARKS, erring_division

from fastflow._backend import backend as forced_backend
from fastflow.ops import sym_log

pytestmark = MARKS


@pytest.fixture(autouse=True)
def backend():
    """Every call by the Triton kernels, every new tensor on their device."""
    with torch.device(DEVICE), forced_backend("triton"):
        yield "triton"


def check(shape, inverse):
    x = 2 * torch.randn(shape)
    weights, log_det = (torch.randn(shape), torch.randn(shape[0])), torch.randn(shape[0])
    wide = tuple(weight.double() for weight in weights)
    truth = everything(formulas, x.double(), log_det.double(), inverse, wide)
    single = everything(formulas, x, log_det, inverse, weights)
    for name, value in everything(sym_log, x, log_det, inverse, weights).items():
        assert_three_way(value, single[name], truth[name], name=name)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_few_rows_are_shared_by_programs(inverse):
    check((3, 5000), inverse)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_many_blocks(inverse):
    check((13 if INTERPRETED else 1601, 600), inverse)


@pytest.mark.skipif(not INTERPRETED, reason="replaces the division of the interpreter")
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_tolerance_holds_with_the_division_of_the_hardware(inverse, monkeypatch):
    erring_division(monkeypatch)
    check((13, 301), inverse)


def test_empty():
    z, log_det = sym_log(torch.randn(0, 4))
    assert (z.shape, log_det.shape) == ((0, 4), (0,))

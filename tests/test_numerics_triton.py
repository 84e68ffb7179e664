"""The elementary functions of Triton kernels against float64, in units of roundoff."""

import math

import pytest
import torch
import triton
import triton.language as tl
from oracles import UNIT_ROUNDOFF
from triton_process import DEVICE, INTERPRETED, MARKS, erring_division

from fastflow.kernels import numerics

pytestmark = MARKS


@triton.jit
def elementwise_kernel(x_ptr, y_ptr, count, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < count, other=1.0)
    tl.store(y_ptr + offsets, FUNCTION(x), mask=offsets < count)


@triton.jit
def divided_by_next(x):
    return numerics.divide(x, x + 1.0)


def apply(function, x):
    y = torch.empty_like(x)
    elementwise_kernel[triton.cdiv(x.numel(), 4096),](x, y, x.numel(), function, 4096, enable_fp_fusion=False)
    return y


GENERATOR = torch.Generator().manual_seed(0)


def spread(low, high):
    return torch.rand(20_000, dtype=torch.float64, generator=GENERATOR) * (high - low) + low


def magnitudes(low, high):
    """Both signs, evenly spread in the exponent."""
    return 10 ** spread(low, high) * spread(-1, 1).sign()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("exp", spread(-87, 88)), ("exp", spread(-1, 1)), ("exp", magnitudes(-12, 0)),
        ("expm1", spread(0, 88)), ("expm1", spread(0, 2)), ("expm1", magnitudes(-12, 0).abs()),
        ("log", magnitudes(-30, 30).abs()), ("log", spread(0.3, 3)), ("log", 1 + magnitudes(-7, -1)),
        ("log1p", spread(-0.5, 1)), ("log1p", magnitudes(-12, 9).abs()),
        ("tanh", spread(-10, 10)), ("tanh", spread(-1, 1)), ("tanh", magnitudes(-10, 2)),
        ("atan", spread(-5, 5)), ("atan", magnitudes(-10, 10)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.min():.2g} to {value.max():.2g}",
)  # fmt: skip
def test_relative_error_is_below_three_roundoffs(name, x, dtype):
    x = x.to(DEVICE, dtype)
    truth = getattr(torch, name)(x.double())
    error = (apply(getattr(numerics, name), x).double() - truth).abs() / (truth.abs() * UNIT_ROUNDOFF[dtype])
    # Float64 is its own truth here, which is good to one roundoff.
    assert error[truth != 0].max() <= (3 if dtype is torch.float32 else 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_special_values(dtype):
    def values(*numbers):
        return torch.tensor(numbers, dtype=dtype, device=DEVICE)

    inf, nan = math.inf, math.nan
    for name in ("exp", "expm1", "log", "log1p", "tanh", "atan"):
        assert apply(getattr(numerics, name), values(nan)).isnan()
    assert apply(numerics.exp, values(inf, 1e4, 0.0, -0.0, -1e4, -inf)).tolist() == [inf, inf, 1, 1, 0, 0]
    assert apply(numerics.expm1, values(inf, 1e4, 0.0)).tolist() == [inf, inf, 0]
    assert apply(numerics.tanh, values(inf, 1e30, 0.0, -1e30, -inf)).tolist() == [1, 1, 0, -1, -1]
    assert apply(numerics.log, values(1.0)).item() == apply(numerics.log1p, values(0.0)).item() == 0
    quarter = values(math.pi).item() / 4
    assert apply(numerics.atan, values(1.0, 0.0, -1.0)).tolist() == [quarter, 0, -quarter]


@pytest.mark.skipif(not INTERPRETED, reason="replaces the division of the interpreter")
def test_division_is_corrected_where_the_hardware_errs(monkeypatch):
    erring_division(monkeypatch)
    x = spread(1, 2**22).round().float()
    truth = x.double() / (x.double() + 1)
    error = (apply(divided_by_next, x).double() - truth).abs() / (truth * UNIT_ROUNDOFF[torch.float32])
    assert error.max() <= 1.01

"""Dequantisation: integer grey levels and uniform noise make continuous data in [0, 1).

    v = (x + noise) / levels         x = floor(v levels)

The density of v on [0, 1]^D bounds the probability of the image: log2 P(x) >= E log2 p(v) - D log2(levels), hence
bits/dim = log2(levels) - log2 p(v) / D. Theis et al. 2016 (arXiv 1511.01844, section 3.1).
"""

import torch
from torch import Tensor

from fastflow.ops._checks import bad_dtype, bad_shape, bad_type, check_device, check_float, is_readable


def dequantize(x: Tensor, noise: Tensor | None = None, *, levels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Continuous data in [0, 1] from grey levels 0 .. levels - 1; exactly 1 only where float32 rounds to it.

    x      integers [B, ...], or floats in [0, 1], which pass unchanged as already dequantised
    noise  of x's shape, uniform in [0, 1); None: 1/2, the deterministic middle of every level
    dtype  of the result; by default the noise's or float x's, else the default dtype

    Raises TypeError or ValueError naming the argument, also, where looking costs nothing (on CPU), for a value out of
    range.
    """
    op = "dequantize"
    if not isinstance(x, Tensor):
        raise bad_type(op, "x", x)
    check_levels(op, x, levels)
    check_noise(op, x, noise)
    if x.is_floating_point():
        if noise is not None:
            raise ValueError(f"{op}: noise is given for {x.dtype} x, expected integer grey levels to add it to")
        _check_range(op, x, 0, 1, "; give grey levels as integers")
        return x if dtype is None else x.to(dtype)
    if dtype is None:
        dtype = torch.get_default_dtype() if noise is None else noise.dtype
    return (x.to(dtype) + (0.5 if noise is None else noise.to(dtype))) / levels


def quantize(v: Tensor, *, levels: int) -> Tensor:
    """The grey levels, int64, of continuous data v: floor(v levels), values outside [0, 1) to the nearest level."""
    check_float("quantize", "v", v)
    return (v * levels).floor().clamp(0, levels - 1).long()


def check_levels(op: str, x: Tensor, levels: int) -> None:
    """Raises unless there are two levels and x is made of floats or, as far as looking costs nothing, of levels."""
    if levels < 2:
        raise ValueError(f"{op}: levels is {levels}, expected at least 2")
    if x.dtype == torch.bool or x.is_complex():
        raise bad_dtype(op, "x", x, "an integer or a floating dtype")
    every_value = x.dtype == torch.uint8 and levels >= 256
    if not x.is_floating_point() and not every_value:
        _check_range(op, x, 0, levels - 1, f" for {levels} levels")


def check_noise(op: str, x: Tensor, noise: Tensor | None) -> None:
    """Raises unless there is no noise, or floats of x's shape on its device."""
    if noise is None:
        return
    check_float(op, "noise", noise)
    if noise.shape != x.shape:
        raise bad_shape(op, "noise", noise, tuple(x.shape), "like x")
    check_device(op, x, noise=noise)


def _check_range(op: str, x: Tensor, low: int, high: int, remedy: str) -> None:
    if not is_readable(x) or x.numel() == 0:
        return
    least, most = x.min().item(), x.max().item()
    if not (low <= least and most <= high):
        raise ValueError(f"{op}: x has values from {least:g} to {most:g}, expected {low} to {high}{remedy}")

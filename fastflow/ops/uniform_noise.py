"""Uniform noise that is a function of (seed, step, row, element): the same however the rows are batched or sharded.

Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11): the key is the seed, the
counter is (element / 4, row low, row high, step), and the four output words serve four consecutive elements. A word w
becomes (w >> 8) 2^-24. There is no state, so a resumed run, another number of ranks and a replayed CUDA graph draw
what an uninterrupted run draws.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastflow.ops._checks import bad_dtype, bad_shape, bad_type

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor | int], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four words of Philox-4x32-10 for each counter; words are held in int64 tensors, 0 .. 2^32 - 1."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        # The product wraps as a signed 64-bit number; its two halves are those of the unsigned one.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (second >> 32 & _MASK) ^ b ^ k, second & _MASK, (first >> 32 & _MASK) ^ d ^ m, first & _MASK
        k, m = (k + _KEY_STEPS[0]) & _MASK, (m + _KEY_STEPS[1]) & _MASK
    return a, b, c, d


def uniform_noise(shape: Sequence[int], *, seed: int, step: int | Tensor, rows: Tensor,
                  device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise in [0, 1), a multiple of 2^-24, keyed by seed, step and the row's global index.

    shape   of the result, (B, ...)
    seed    any integer, taken modulo 2^64
    step    0 .. 2^32 - 1, an int or an integer scalar tensor on the device (which a CUDA graph can replay)
    rows    integers [B]: which row of the data set each row of the batch is
    device  of the result; by default that of rows
    dtype   float32 or float64: the same values

    Raises TypeError or ValueError naming the argument.
    """
    op = "uniform_noise"
    shape = tuple(shape)
    if not isinstance(rows, Tensor):
        raise bad_type(op, "rows", rows, "a Tensor of global row indices")
    if rows.is_floating_point() or rows.dtype == torch.bool:
        raise bad_dtype(op, "rows", rows, "an integer dtype")
    if not shape or rows.shape != shape[:1]:
        raise bad_shape(op, "rows", rows, shape[:1], f"one index for each row of shape {shape}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: dtype is {dtype}, expected float32 or float64")
    rows = rows.to(device=rows.device if device is None else device, dtype=torch.int64)
    elements = math.prod(shape[1:])
    blocks = torch.arange(-(-elements // 4), device=rows.device).expand(shape[0], -1)
    row = rows[:, None].expand_as(blocks)
    words = philox((blocks, row & _MASK, row >> 32 & _MASK, step & _MASK), (seed & _MASK, seed >> 32 & _MASK))
    values = torch.stack(words, dim=-1).flatten(1)[:, :elements]
    return ((values >> 8).to(dtype) * 2.0**-24).view(shape)

"""Uniform noise that is a function of (seed, step, row, element): the same however the rows are batched or sharded.

Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11): the key is the seed, the
counter is (element / 4, row low, row high, step), and the four output words serve four consecutive elements. A word w
becomes (w >> 8) 2^-24. There is no state, so a resumed run and another number of ranks draw what an uninterrupted run
draws; kernels read seed and step from tensors, so a replayed CUDA graph draws by what these hold then.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import bad_dtype, bad_shape, bad_type
from fastflow.ops._define import Op, under_transform

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor | int, Tensor | int],
           ) -> tuple[Tensor, ...]:
    """Four words of Philox-4x32-10 for each counter; words are held in int64 tensors, 0 .. 2^32 - 1."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        # The product wraps as a signed 64-bit number; its two halves are those of the unsigned one.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (second >> 32 & _MASK) ^ b ^ k, second & _MASK, (first >> 32 & _MASK) ^ d ^ m, first & _MASK
        k, m = (k + _KEY_STEPS[0]) & _MASK, (m + _KEY_STEPS[1]) & _MASK
    return a, b, c, d


def reference(seed: Tensor, step: Tensor, rows: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
    """The definition: [B, elements] of `dtype` from int64 seed [], step [] and rows [B]."""
    blocks = torch.arange(-(-elements // 4), device=rows.device).expand(rows.shape[0], -1)
    row = rows[:, None].expand_as(blocks)
    words = philox((blocks, row & _MASK, row >> 32 & _MASK, step & _MASK), (seed & _MASK, seed >> 32 & _MASK))
    values = torch.stack(words, dim=-1).flatten(1)[:, :elements]
    return (values >> 8).to(dtype) * 2.0**-24


def _fake(seed, step, rows, elements, dtype):
    return rows.new_empty(rows.shape[0], elements, dtype=dtype)


_op = Op("uniform_noise", "(Tensor seed, Tensor step, Tensor rows, SymInt elements, ScalarType dtype) -> Tensor",
         reference=reference, fallback=reference, fake=_fake, on_cuda="triton")


def uniform_noise(shape: Sequence[int], *, seed: int | Tensor, step: int | Tensor, rows: Tensor,
                  device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise in [0, 1), a multiple of 2^-24, keyed by seed, step and the row's global index.

    shape   of the result, (B, ...)
    seed    any integer, taken modulo 2^64; an int, or an integer tensor of one element
    step    0 .. 2^32 - 1, an int, or an integer tensor of one element. Where seed and step are tensors on the device, a
            captured CUDA graph draws by their values at the time of the replay; see `nn.NoiseStream`
    rows    integers [B]: which row of the data set each row of the batch is
    device  of the result; by default that of rows
    dtype   float32 or float64: the same values

    Raises TypeError or ValueError naming the argument.
    """
    op = "uniform_noise"
    shape = tuple(shape)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: dtype is {dtype}, expected float32 or float64")
    if isinstance(rows, Tensor) and device is not None:
        rows = rows.to(device)
    key = noise_key(op, shape, seed, step, rows)
    backend = _backend.forced()
    kernel = reference if under_transform() else _op.kernel(backend, key[2].device.type)
    return kernel(*key, math.prod(shape[1:]), dtype).view(shape)


def noise_key(op: str, shape: tuple[int, ...], seed: object, step: object, rows: object,
              ) -> tuple[Tensor, Tensor, Tensor]:
    """(seed [], step [], rows [B]) as int64 tensors on the device of rows, for noise of `shape`; raises for others."""
    if not isinstance(rows, Tensor):
        raise bad_type(op, "rows", rows, "a Tensor of global row indices")
    if not shape or rows.shape != shape[:1]:
        raise bad_shape(op, "rows", rows, shape[:1], f"one index for each row of shape {shape}")
    return _scalar(op, "seed", seed, rows), _scalar(op, "step", step, rows), _integers(op, "rows", rows)


def _scalar(op: str, name: str, value: object, rows: Tensor) -> Tensor:
    if isinstance(value, int):  # filled on the device: a copy from the host would wait for it
        return torch.full((), as_signed(value), dtype=torch.int64, device=rows.device)
    if not isinstance(value, Tensor):
        raise bad_type(op, name, value, "an int or an integer Tensor of one element")
    if value.numel() != 1:
        raise bad_shape(op, name, value, "one element")
    return _integers(op, name, value).to(rows.device).view(())


def _integers(op: str, name: str, value: Tensor) -> Tensor:
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise bad_dtype(op, name, value, "an integer dtype")
    return value.to(torch.int64)


def as_signed(value: int) -> int:
    """The int64 that is `value` modulo 2^64."""
    return (value + 2**63) % 2**64 - 2**63

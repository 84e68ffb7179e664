"""The order in which a kernel walks the features of [B, C, *spatial] tensors, each with strides of its own.

The features of a row are numbered along `sizes`: the channel and spatial dimensions from the largest to the smallest
stride of the main output, neighbours merged wherever every tensor allows it. Contiguous tensors merge to one dimension
of stride 1, channels-last ones to (space, channels). Sizes and these strides are compile-time constants, which is what
makes 128-bit accesses provable; only the strides between rows are run-time arguments.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Of dimension `channel` of `sizes`, the indices start, start + step, ... (`active` of them) are active.

    `strides[i]` are the strides along `sizes` of the i-th tensor given to `plan`, None where that was None.
    """

    sizes: tuple[int, ...]
    channel: int
    start: int
    step: int
    active: int
    strides: tuple[tuple[int, ...] | None, ...]

    @property
    def features(self) -> int:
        """Features of a row, active or not."""
        return math.prod(self.sizes)


def check_features(shape: tuple[int, ...]) -> None:
    """Raises ValueError for a row too long for the kernels' 32-bit numbers of features."""
    if math.prod(shape) >= 2**31 - 2**16:
        raise ValueError(f"Triton kernels: a row has shape {tuple(shape)}, {math.prod(shape)} features, expected fewer "
                         "than 2**31 - 2**16")


@lru_cache(maxsize=4096)
def plan(shape: tuple[int, ...], start: int, step: int, active: int, *strides: tuple[int, ...] | None) -> Layout:
    """The layout for features of `shape` (C, *spatial), in the memory order of the first tensor of `strides`.

    A tensor that holds only the active channels gives its own stride between them. Raises ValueError for a row too long
    for the kernels' 32-bit numbers of features.
    """
    check_features(shape)
    present = [each for each in strides if each is not None]
    all_active = active == shape[0]
    if all_active:
        step = 1
    merged = []
    for i in sorted(range(len(shape)), key=lambda i: -present[0][i]):
        if shape[i] == 1 and i > 0:
            continue
        size, stride, is_channel = shape[i], [each[i] for each in present], i == 0
        if merged:
            outer_size, outer_stride, outer_is_channel = merged[-1]
            adjacent = all(outer == inner * size for outer, inner in zip(outer_stride, stride, strict=True))
            if adjacent and (all_active or not is_channel) and (step == 1 or not outer_is_channel):
                if outer_is_channel:
                    start, active = start * size, active * size
                elif is_channel:
                    active *= outer_size
                merged[-1] = outer_size * size, stride, is_channel or outer_is_channel
                continue
        merged.append((size, stride, is_channel))
    sizes, by_dimension, channel = zip(*merged, strict=True)
    by_tensor = iter(zip(*by_dimension, strict=True))
    return Layout(sizes, channel.index(True), start, step, active,
                  tuple(None if each is None else next(by_tensor) for each in strides))


def row_align(*tensors: Tensor | None) -> int:
    """The power of two, at most 16 elements, that divides every row stride: what makes wide accesses provable."""
    return math.gcd(16, *(tensor.stride(0) for tensor in tensors if tensor is not None))


@triton.jit
def channel_index(feature, SIZES: tl.constexpr, CHANNEL: tl.constexpr):
    """The index of each feature along the channel dimension."""
    for i in tl.static_range(len(SIZES) - 1, CHANNEL, -1):
        feature = feature // SIZES[i]
    return feature if CHANNEL == 0 else feature % SIZES[CHANNEL]


@triton.jit
def offsets(feature, index, STRIDES: tl.constexpr, SIZES: tl.constexpr, CHANNEL: tl.constexpr):
    """int64 offsets within a row of a tensor whose index along the channel dimension is `index`."""
    total = index.to(tl.int64) * STRIDES[CHANNEL]
    for i in tl.static_range(len(SIZES) - 1, -1, -1):
        if i != CHANNEL:
            coordinate = feature if i == 0 else feature % SIZES[i]
            total += coordinate.to(tl.int64) * STRIDES[i]
        feature = feature // SIZES[i]
    return total


@triton.jit
def tile(ptr, row, row_stride, ROW_ALIGN: tl.constexpr, feature, index, STRIDES: tl.constexpr, SIZES: tl.constexpr,
         CHANNEL: tl.constexpr):
    """Pointers to rows x features of a tensor whose row stride is a multiple of ROW_ALIGN; `row` is int64."""
    rows = tl.multiple_of(row * row_stride, ROW_ALIGN)
    return ptr + rows[:, None] + offsets(feature, index, STRIDES, SIZES, CHANNEL)[None, :]

"""Channel mixing: one kernel forward and one for its backward, each one pass over memory.

A program holds tiles of all channels x some pixels, rows and places within a row in one, and multiplies them by the
matrix: z = M (x - center) + shift; in backward grad_x = M^T grad_z, and sums of grad_z (x - center)^T and grad_z for
matrix and shift. The channels may lie in two tensors, x and rest, and so may those of z; x may be squeezed as it is
read, or z un-squeezed as it is written. Whatever the storage, products and sums are float32
fused multiply-adds, never TF32; float64 data use the tensor cores' exact float64 instructions.

Elements moved a pixel and channel: forward 2 (x in, z out), backward 3 (grad_z and x in, grad_x out). Flops a pixel of
C channels: forward 2 C^2, backward 4 C^2. Floor on an H200 at 4.3 TB/s and 60 TFLOP/s, float32, by memory / by flops:
[256, 24, 14, 14] forward 2.2 / 1.0 us, backward 3.4 / 1.9 us; [65536, 64] forward 7.8 / 8.9 us, backward 11.7 /
17.9 us. Channels are padded to a power of two: with 24, 44% of the multiplications are by zero. Not measured on a GPU
yet.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops.channel_mix import empty_grads, empty_results

from .launch import multiprocessors, pixel_tiles

# The terms of a sum that one tl.dot adds. The compiler reads all its operands into registers at once: those of 64 would
# not fit, and fewer than 16 Triton 3.6 does not take.
TERMS = tl.constexpr(16)


@triton.jit
def _pixels(block, rows, SPACE: tl.constexpr, BLOCK_PIXELS: tl.constexpr):
    """(row, place in the row, whether there is such a row) of the pixels of a block."""
    ALIGN: tl.constexpr = min(SPACE & -SPACE, BLOCK_PIXELS)
    first = tl.cast(block, tl.int64) * BLOCK_PIXELS
    place = tl.multiple_of((first % SPACE).to(tl.int32), ALIGN) + tl.arange(0, BLOCK_PIXELS)
    row = first // SPACE + place // SPACE
    return row, place % SPACE, row < rows


@triton.jit
def _tile(ptr, row, place, channel, STRIDES: tl.constexpr):
    """Pointers to channels x pixels. STRIDES is as `_operand` has it."""
    if len(STRIDES) == 3:
        pixel = row * STRIDES[0] + place.to(tl.int64) * STRIDES[2]
        return ptr + channel.to(tl.int64)[:, None] * STRIDES[1] + pixel[None, :]
    else:
        WIDTH: tl.constexpr = STRIDES[4]
        IN_RUNS: tl.constexpr = STRIDES[5]  # so many channels have the same place in their blocks of 2 x 2; 0: in turns
        place_in_block = channel // IN_RUNS if IN_RUNS else channel % 4
        plane = channel % IN_RUNS if IN_RUNS else channel // 4
        corner = place_in_block // 2 * STRIDES[2] + place_in_block % 2 * STRIDES[3]
        pixel = row * STRIDES[0] + 2 * ((place // WIDTH).to(tl.int64) * STRIDES[2] + place % WIDTH * STRIDES[3])
        return ptr + (plane.to(tl.int64) * STRIDES[1] + corner)[:, None] + pixel[None, :]


@triton.jit
def _load(ptr, rest_ptr, row, place, mask, channel, STRIDES: tl.constexpr, REST_STRIDES: tl.constexpr,
          PART: tl.constexpr, CHANNELS: tl.constexpr):
    """Channels x pixels, zero where there are none; from PART on the channels are those of rest."""
    loaded = tl.load(_tile(ptr, row, place, channel, STRIDES), mask=(channel < PART)[:, None] & mask[None, :],
                     other=0.0)
    if rest_ptr is not None:
        in_rest = (channel >= PART) & (channel < CHANNELS)
        loaded = tl.load(_tile(rest_ptr, row, place, channel - PART, REST_STRIDES),
                         mask=in_rest[:, None] & mask[None, :], other=loaded)
    return loaded


@triton.jit
def _store(ptr, rest_ptr, values, row, place, mask, channel, STRIDES: tl.constexpr, REST_STRIDES: tl.constexpr,
           PART: tl.constexpr, CHANNELS: tl.constexpr):
    """The reverse of _load."""
    tl.store(_tile(ptr, row, place, channel, STRIDES), values, mask=(channel < PART)[:, None] & mask[None, :])
    if rest_ptr is not None:
        in_rest = (channel >= PART) & (channel < CHANNELS)
        tl.store(_tile(rest_ptr, row, place, channel - PART, REST_STRIDES), values,
                 mask=in_rest[:, None] & mask[None, :])


@triton.jit
def _less(values, center_ptr, center_stride, channel, CHANNELS: tl.constexpr):
    """values less the center of each channel."""
    if center_ptr is not None:
        values -= tl.load(center_ptr + channel * center_stride, mask=channel < CHANNELS, other=0.0)[:, None]
    return values


@triton.jit
def _mixed(ptr, rest_ptr, matrix_ptr, center_ptr, center_stride, row, place, mask, STRIDES: tl.constexpr,
           REST_STRIDES: tl.constexpr, PART: tl.constexpr, OUT_STRIDE: tl.constexpr, TERM_STRIDE: tl.constexpr,
           CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr):
    """matrix[out, term] times the centered channels, all of which are asked of memory before the first product."""
    COMPUTE: tl.constexpr = matrix_ptr.dtype.element_ty
    out = tl.arange(0, BLOCK_CHANNELS)
    loaded = ()
    for first in tl.static_range(0, CHANNELS, TERMS):
        loaded += (_load(ptr, rest_ptr, row, place, mask, first + tl.arange(0, TERMS), STRIDES, REST_STRIDES, PART,
                         CHANNELS),)
    total = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], COMPUTE)
    for first in tl.static_range(0, CHANNELS, TERMS):
        term = first + tl.arange(0, TERMS)
        matrix = tl.load(matrix_ptr + out[:, None] * OUT_STRIDE + term[None, :] * TERM_STRIDE,
                         mask=(out < CHANNELS)[:, None] & (term < CHANNELS)[None, :], other=0.0)
        centered = _less(loaded[first // TERMS].to(COMPUTE), center_ptr, center_stride, term, CHANNELS)
        total = tl.dot(matrix, centered, total, input_precision="ieee", out_dtype=COMPUTE)
    return total


@triton.jit(do_not_specialize=["rows", "center_stride", "shift_stride", "log_det_stride"])
def channel_mix_kernel(
    x_ptr, rest_ptr, matrix_ptr, center_ptr, shift_ptr, own_ptr, log_det_ptr, z_ptr, z_rest_ptr, total_ptr,
    rows, center_stride, shift_stride, log_det_stride,
    X_STRIDES: tl.constexpr, REST_STRIDES: tl.constexpr, MATRIX_STRIDES: tl.constexpr, Z_STRIDES: tl.constexpr,
    Z_REST_STRIDES: tl.constexpr, CHANNELS: tl.constexpr, X_CHANNELS: tl.constexpr, Z_CHANNELS: tl.constexpr,
    SPACE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):
    """z; the program of the pixels n, n + 1, ... also writes total[n], total[n + 1], ..., as far as there are rows."""
    row, place, mask = _pixels(tl.program_id(0), rows, SPACE, BLOCK_PIXELS)
    z = _mixed(x_ptr, rest_ptr, matrix_ptr, center_ptr, center_stride, row, place, mask, X_STRIDES, REST_STRIDES,
               X_CHANNELS, MATRIX_STRIDES[0], MATRIX_STRIDES[1], CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    if shift_ptr is not None:
        z += tl.load(shift_ptr + channel * shift_stride, mask=channel < CHANNELS, other=0.0)[:, None]
    _store(z_ptr, z_rest_ptr, z, row, place, mask, channel, Z_STRIDES, Z_REST_STRIDES, Z_CHANNELS, CHANNELS)
    number = tl.program_id(0).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    total = tl.load(own_ptr) + tl.zeros([BLOCK_PIXELS], own_ptr.dtype.element_ty)
    if log_det_ptr is not None:
        total += tl.load(log_det_ptr + number * log_det_stride, mask=number < rows, other=0.0)
    tl.store(total_ptr + number, total, mask=number < rows)


@triton.jit(do_not_specialize=["rows", "center_stride"])
def channel_mix_backward_kernel(
    grad_z_ptr, grad_rest_ptr, x_ptr, rest_ptr, matrix_ptr, center_ptr, grad_x_ptr, grad_x_rest_ptr, grad_matrix_ptr,
    grad_shift_ptr, rows, center_stride,
    GRAD_Z_STRIDES: tl.constexpr, GRAD_REST_STRIDES: tl.constexpr, X_STRIDES: tl.constexpr, REST_STRIDES: tl.constexpr,
    MATRIX_STRIDES: tl.constexpr, GRAD_X_STRIDES: tl.constexpr, GRAD_X_REST_STRIDES: tl.constexpr,
    CHANNELS: tl.constexpr, X_CHANNELS: tl.constexpr, Z_CHANNELS: tl.constexpr, SPACE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):
    """grad_x; grad_matrix[group] and grad_shift[group] sum over blocks group, group + groups, ... of pixels.

    grad_z is asked for twice, the second time of the cache: no registers are left for it beside x and both products.
    """
    COMPUTE: tl.constexpr = matrix_ptr.dtype.element_ty
    channel, group = tl.arange(0, BLOCK_CHANNELS), tl.program_id(0)
    grad_matrix, grad_shift = tl.zeros([BLOCK_CHANNELS, BLOCK_CHANNELS], COMPUTE), tl.zeros([BLOCK_CHANNELS], COMPUTE)
    blocks = tl.cdiv(tl.cast(rows, tl.int64) * SPACE, BLOCK_PIXELS).to(tl.int32)
    for block in range(group, blocks, tl.num_programs(0)):
        row, place, mask = _pixels(block, rows, SPACE, BLOCK_PIXELS)
        grad_x = _mixed(grad_z_ptr, grad_rest_ptr, matrix_ptr, None, 0, row, place, mask, GRAD_Z_STRIDES,
                        GRAD_REST_STRIDES, Z_CHANNELS, MATRIX_STRIDES[1], MATRIX_STRIDES[0], CHANNELS, BLOCK_CHANNELS,
                        BLOCK_PIXELS)
        _store(grad_x_ptr, grad_x_rest_ptr, grad_x, row, place, mask, channel, GRAD_X_STRIDES, GRAD_X_REST_STRIDES,
               X_CHANNELS, CHANNELS)
        g = _load(grad_z_ptr, grad_rest_ptr, row, place, mask, channel, GRAD_Z_STRIDES, GRAD_REST_STRIDES, Z_CHANNELS,
                  CHANNELS).to(COMPUTE)
        x = _load(x_ptr, rest_ptr, row, place, mask, channel, X_STRIDES, REST_STRIDES, X_CHANNELS, CHANNELS)
        x = _less(x.to(COMPUTE), center_ptr, center_stride, channel, CHANNELS)
        grad_shift += tl.sum(g, axis=1)
        grad_matrix = tl.dot(g, tl.trans(x), grad_matrix, input_precision="ieee", out_dtype=COMPUTE)
    inside = channel < CHANNELS
    tl.store(grad_matrix_ptr + (group * CHANNELS + channel[:, None]) * CHANNELS + channel[None, :], grad_matrix,
             mask=inside[:, None] & inside[None, :])
    tl.store(grad_shift_ptr + group * CHANNELS + channel, grad_shift, mask=inside)


def channel_mix_cuda(
    x: Tensor, rest: Tensor | None, matrix: Tensor, center: Tensor | None, shift: Tensor | None, own: Tensor,
    log_det: Tensor | None, split: int, squeezing: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the forward kernel: the arguments of the schema `fastflow::channel_mix`, unchecked."""
    rows, channels, space = x.shape[0], matrix.shape[0], _space(x, squeezing)
    z, z_rest = empty_results(x, channels, split, squeezing)
    if rows * space == 0:
        return z, z_rest, own.repeat(rows) if log_det is None else log_det + own
    total = matrix.new_empty(rows)
    launch = pixel_tiles(rows * space, channels, x.element_size(), multiprocessors(x.device), reduces=False)
    x_view, x_strides = _operand(x, max(0, squeezing))
    z_view, z_strides = _operand(z, min(0, squeezing))
    rest_view, rest_strides = _operand(rest)
    z_rest_view, z_rest_strides = _operand(z_rest if split else None)
    with torch.cuda.device_of(x):
        channel_mix_kernel[launch.programs,](
            x_view, rest_view, matrix, center, shift, own, log_det, z_view, z_rest_view, total,
            rows, *(0 if vector is None else vector.stride(0) for vector in (center, shift, log_det)),
            X_STRIDES=x_strides, REST_STRIDES=rest_strides, MATRIX_STRIDES=matrix.stride(), Z_STRIDES=z_strides,
            Z_REST_STRIDES=z_rest_strides, CHANNELS=channels, X_CHANNELS=channels if rest is None else x.shape[1],
            Z_CHANNELS=split or channels, SPACE=space, BLOCK_CHANNELS=launch.block_channels,
            BLOCK_PIXELS=launch.block_pixels, num_warps=launch.num_warps, enable_fp_fusion=False,
        )
    return z, z_rest, total


def channel_mix_backward_cuda(
    grad_z: Tensor, grad_rest: Tensor | None, x: Tensor, rest: Tensor | None, matrix: Tensor, center: Tensor | None,
    squeezing: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches the backward kernel: the arguments of `fastflow::channel_mix_backward`, unchecked."""
    rows, channels, space = x.shape[0], matrix.shape[0], _space(x, squeezing)
    grad_x, grad_x_rest = empty_grads(x, rest, squeezing)
    if rows * space == 0:
        return grad_x, grad_x_rest, matrix.new_zeros(channels, channels), matrix.new_zeros(channels)
    launch = pixel_tiles(rows * space, channels, x.element_size(), multiprocessors(x.device), reduces=True)
    grad_matrix = matrix.new_empty(launch.programs, channels, channels)
    grad_shift = matrix.new_empty(launch.programs, channels)
    grad_z_view, grad_z_strides = _operand(grad_z, min(0, squeezing))
    (x_view, x_strides), (grad_x_view, grad_x_strides) = (_operand(each, max(0, squeezing)) for each in (x, grad_x))
    grad_rest_view, grad_rest_strides = _operand(grad_rest)
    rest_view, rest_strides = _operand(rest)
    grad_x_rest_view, grad_x_rest_strides = _operand(None if rest is None else grad_x_rest)
    with torch.cuda.device_of(x):
        channel_mix_backward_kernel[launch.programs,](
            grad_z_view, grad_rest_view, x_view, rest_view, matrix, center, grad_x_view, grad_x_rest_view, grad_matrix,
            grad_shift, rows, 0 if center is None else center.stride(0),
            GRAD_Z_STRIDES=grad_z_strides, GRAD_REST_STRIDES=grad_rest_strides, X_STRIDES=x_strides,
            REST_STRIDES=rest_strides, MATRIX_STRIDES=matrix.stride(), GRAD_X_STRIDES=grad_x_strides,
            GRAD_X_REST_STRIDES=grad_x_rest_strides, CHANNELS=channels,
            X_CHANNELS=channels if rest is None else x.shape[1],
            Z_CHANNELS=channels if grad_rest is None else grad_z.shape[1], SPACE=space,
            BLOCK_CHANNELS=launch.block_channels, BLOCK_PIXELS=launch.block_pixels, num_warps=launch.num_warps,
            num_stages=1, enable_fp_fusion=False,
        )
    return grad_x, grad_x_rest, grad_matrix.sum(0), grad_shift.sum(0)


def _space(x: Tensor, squeezing: int) -> int:
    """The pixels of a row, which the kernels number in 32 bits."""
    space = math.prod(x.shape[2:]) // (4 if squeezing > 0 else 1)
    if space >= 2**31 - 2**16:
        raise ValueError(f"channel_mix: x has shape {tuple(x.shape)}, {space} pixels a row, expected fewer than "
                         "2**31 - 2**16")
    return space


def _operand(x: Tensor | None, squeezing: int = 0) -> tuple[Tensor | None, tuple[int, ...] | None]:
    """x, and its strides between rows, channels and pixels: of a view, or of a copy where no one stride leads from
    each pixel to the next. Of a tensor whose 2 x 2 pixels are channels of one: its strides between rows, channels,
    lines and columns, half its width, and how many channels follow each other at the same place of their blocks."""
    if x is None:
        return None, None
    if squeezing:
        return x, (*x.stride(), x.shape[3] // 2, x.shape[1] if abs(squeezing) == 1 else 0)
    merged = x.unsqueeze(2).flatten(2)
    return merged, merged.stride()

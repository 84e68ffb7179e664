"""Affine coupling: one kernel for both directions and one for the backward of both, each one pass over memory.

A program handles tiles of rows x features over all features of [B, C, *spatial]: it transforms the active ones and
copies the passive ones. Whatever the storage, arithmetic is float32 (float64 for float64 x). With c the scale,

    forward  f = c,   sign = +1        u = v f + sign t, or (v + sign t) f where the shift meets the op's input v;
    inverse  f = 1/c, sign = -1        log_det = running + sign sum log c

Elements moved: forward 4 per active feature (x, scale, shift in, z out), backward 6 or 7 (grad_z, scale, saved, and
shift where the form needs it, in; three gradients out); 2 per passive feature. About 80 instructions per active feature
(sigmoid), 150 flops. Floor on an H200 at 4.3 TB/s, float32 [65536, 1568] with 784 active: forward 287 us, backward 383
to 430 us. With 16-bit storage it is half of that, and close to the 140 us that 528 schedulers at 1.7 GHz need to issue
the forward's instructions. Not measured on a GPU yet.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops.packing import empty_packed, unpack

from .launch import column_reduction, multiprocessors, row_reduction
from .layout import channel_index, offsets, plan, row_align, tile
from .numerics import tanh
from .scale_map import ADDITIVE, scale_map


@triton.jit
def _select(feature, channel, mask_ptr, MASK_STRIDES: tl.constexpr, SIZES: tl.constexpr, CHANNEL: tl.constexpr,
            FEATURES: tl.constexpr, START: tl.constexpr, STEP: tl.constexpr, ACTIVE: tl.constexpr):
    """(which features are active, which have a scale and shift, their index along the channels of these).

    Under a mask the second are more than the first, and are loaded: a predicate an element would split wide accesses.
    """
    selected = (feature < FEATURES) & (channel >= START) & (channel < START + STEP * ACTIVE)
    if STEP > 1:
        selected &= (channel - START) % STEP == 0
    active = selected
    if mask_ptr is not None:
        passive = tl.load(mask_ptr + offsets(feature, channel, MASK_STRIDES, SIZES, CHANNEL), mask=selected, other=1)
        active = selected & (passive == 0)
    return active, selected, (channel - START) // STEP


@triton.jit
def _may_be_active(first, BLOCK_FEATURES: tl.constexpr, SIZES: tl.constexpr, CHANNEL: tl.constexpr,
                   FEATURES: tl.constexpr, START: tl.constexpr, STEP: tl.constexpr, ACTIVE: tl.constexpr):
    """Whether to look for active features in the block that starts at `first`; the others are copied and no more."""
    if CHANNEL > 0 or SIZES[0] == ACTIVE:
        return True
    else:
        SPACE: tl.constexpr = FEATURES // SIZES[0]
        return (first < (START + STEP * ACTIVE) * SPACE) & (first + BLOCK_FEATURES > START * SPACE)


@triton.jit(do_not_specialize=["rows", "x_row_stride", "scale_row_stride", "shift_row_stride", "log_det_stride",
                               "z_row_stride"])
def affine_coupling_kernel(
    x_ptr, scale_ptr, shift_ptr, gain_ptr, mask_ptr, log_det_ptr, z_ptr, total_ptr,
    rows, x_row_stride, scale_row_stride, shift_row_stride, log_det_stride, z_row_stride,
    X_STRIDES: tl.constexpr, SCALE_STRIDES: tl.constexpr, SHIFT_STRIDES: tl.constexpr, GAIN_STRIDES: tl.constexpr,
    MASK_STRIDES: tl.constexpr, Z_STRIDES: tl.constexpr,
    ROW_ALIGN: tl.constexpr, SIZES: tl.constexpr, CHANNEL: tl.constexpr, FEATURES: tl.constexpr, START: tl.constexpr,
    STEP: tl.constexpr, ACTIVE: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr, EPS: tl.constexpr,
    CLAMP: tl.constexpr, SHIFT_FIRST: tl.constexpr, INVERSE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_FEATURES: tl.constexpr,
):
    """z; total[split, row] sums log c over feature blocks split, split + splits, ...; split 0 adds log_det."""
    COMPUTE: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    SIGN: tl.constexpr = -1.0 if INVERSE else 1.0
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = row < rows
    log_det = tl.zeros([BLOCK_ROWS, BLOCK_FEATURES], COMPUTE)
    for block in range(split, tl.cdiv(FEATURES, BLOCK_FEATURES), tl.num_programs(1)):
        first = block * BLOCK_FEATURES
        feature = first + tl.arange(0, BLOCK_FEATURES)
        channel = channel_index(feature, SIZES, CHANNEL)
        tile_mask = row_mask[:, None] & (feature < FEATURES)[None, :]
        x_tile = tile(x_ptr, row, x_row_stride, ROW_ALIGN, feature, channel, X_STRIDES, SIZES, CHANNEL)
        z_tile = tile(z_ptr, row, z_row_stride, ROW_ALIGN, feature, channel, Z_STRIDES, SIZES, CHANNEL)
        z = tl.load(x_tile, mask=tile_mask, other=0.0).to(COMPUTE)
        if _may_be_active(first, BLOCK_FEATURES, SIZES, CHANNEL, FEATURES, START, STEP, ACTIVE):
            active, selected, index = _select(feature, channel, mask_ptr, MASK_STRIDES, SIZES, CHANNEL, FEATURES,
                                              START, STEP, ACTIVE)
            active_mask, parameter_mask = row_mask[:, None] & active[None, :], row_mask[:, None] & selected[None, :]
            shift_tile = tile(shift_ptr, row, shift_row_stride, ROW_ALIGN, feature, index, SHIFT_STRIDES, SIZES,
                              CHANNEL)
            shift = SIGN * tl.load(shift_tile, mask=parameter_mask, other=0.0).to(COMPUTE)
            if KIND == ADDITIVE:
                u = z + shift
            else:
                scale_tile = tile(scale_ptr, row, scale_row_stride, ROW_ALIGN, feature, index, SCALE_STRIDES, SIZES,
                                  CHANNEL)
                s = tl.load(scale_tile, mask=parameter_mask, other=0.0).to(COMPUTE)
                gain = gain_ptr
                if gain_ptr is not None:
                    gain_tile = gain_ptr + offsets(feature, index, GAIN_STRIDES, SIZES, CHANNEL)
                    gain = tl.load(gain_tile, mask=selected, other=0.0)[None, :]
                log_c, factor, _ = scale_map(s, gain, KIND, BIAS, EPS, CLAMP, INVERSE)
                log_det += tl.where(active_mask, log_c, 0.0)
                u = (z + shift) * factor if SHIFT_FIRST != INVERSE else tl.fma(z, factor, shift)
            z = tl.where(active_mask, u, z)
        tl.store(z_tile, z, mask=tile_mask)
    total = SIGN * tl.sum(log_det, axis=1)
    if log_det_ptr is not None and split == 0:
        total += tl.load(log_det_ptr + row * log_det_stride, mask=row_mask, other=0.0)
    tl.store(total_ptr + split.to(tl.int64) * rows + row, total, mask=row_mask)


@triton.jit(do_not_specialize=["rows", "grad_z_row_stride", "grad_log_det_stride", "saved_row_stride",
                               "scale_row_stride", "shift_row_stride", "grad_x_row_stride",
                               "grad_parameters_row_stride", "grad_gain_row_stride"])
def affine_coupling_backward_kernel(
    grad_z_ptr, grad_log_det_ptr, saved_ptr, scale_ptr, shift_ptr, gain_ptr, mask_ptr,
    grad_x_ptr, grad_scale_ptr, grad_shift_ptr, grad_gain_ptr,
    rows, grad_z_row_stride, grad_log_det_stride, saved_row_stride, scale_row_stride, shift_row_stride,
    grad_x_row_stride, grad_parameters_row_stride, grad_gain_row_stride,
    GRAD_Z_STRIDES: tl.constexpr, SAVED_STRIDES: tl.constexpr, SCALE_STRIDES: tl.constexpr, SHIFT_STRIDES: tl.constexpr,
    GAIN_STRIDES: tl.constexpr, MASK_STRIDES: tl.constexpr, GRAD_X_STRIDES: tl.constexpr,
    GRAD_SCALE_STRIDES: tl.constexpr, GRAD_SHIFT_STRIDES: tl.constexpr, GRAD_GAIN_STRIDES: tl.constexpr,
    ROW_ALIGN: tl.constexpr, SIZES: tl.constexpr, CHANNEL: tl.constexpr, FEATURES: tl.constexpr, START: tl.constexpr,
    STEP: tl.constexpr, ACTIVE: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr, EPS: tl.constexpr,
    CLAMP: tl.constexpr, SHIFT_FIRST: tl.constexpr, INVERSE: tl.constexpr, FROM_INPUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_FEATURES: tl.constexpr,
):
    """Gradients of x, scale, shift; grad_gain[group, channel, space] sums over row blocks group, group + groups, ...

    With w the scaled term of the output (u without the shift, or all of it where the shift meets the input), gradient g
    of u and h of log_det: grad v = g f, grad t = sign g or sign g f, grad log c = sign (g w + h).
    """
    COMPUTE: tl.constexpr = tl.float64 if saved_ptr.dtype.element_ty == tl.float64 else tl.float32
    SHIFT_AT_INPUT: tl.constexpr = SHIFT_FIRST != INVERSE
    SIGN: tl.constexpr = -1.0 if INVERSE else 1.0
    FEATURE_BLOCKS: tl.constexpr = (FEATURES + BLOCK_FEATURES - 1) // BLOCK_FEATURES
    group, groups = tl.program_id(0) // FEATURE_BLOCKS, tl.num_programs(0) // FEATURE_BLOCKS
    first = tl.program_id(0) % FEATURE_BLOCKS * BLOCK_FEATURES
    feature = first + tl.arange(0, BLOCK_FEATURES)
    channel = channel_index(feature, SIZES, CHANNEL)
    active, selected, index = _select(feature, channel, mask_ptr, MASK_STRIDES, SIZES, CHANNEL, FEATURES, START, STEP,
                                      ACTIVE)
    gain = gain_ptr
    if gain_ptr is not None:
        gain_tile = gain_ptr + offsets(feature, index, GAIN_STRIDES, SIZES, CHANNEL)
        gain = tl.load(gain_tile, mask=selected, other=0.0)[None, :]
    grad_gain = tl.zeros([BLOCK_ROWS, BLOCK_FEATURES], COMPUTE)
    for block in range(group, tl.cdiv(rows, BLOCK_ROWS), groups):
        row = tl.cast(block, tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row_mask = row < rows
        tile_mask = row_mask[:, None] & (feature < FEATURES)[None, :]
        active_mask, parameter_mask = row_mask[:, None] & active[None, :], row_mask[:, None] & selected[None, :]
        grad_z_tile = tile(grad_z_ptr, row, grad_z_row_stride, ROW_ALIGN, feature, channel, GRAD_Z_STRIDES, SIZES,
                           CHANNEL)
        grad_x_tile = tile(grad_x_ptr, row, grad_x_row_stride, ROW_ALIGN, feature, channel, GRAD_X_STRIDES, SIZES,
                           CHANNEL)
        grad_x = tl.load(grad_z_tile, mask=tile_mask, other=0.0).to(COMPUTE)
        if _may_be_active(first, BLOCK_FEATURES, SIZES, CHANNEL, FEATURES, START, STEP, ACTIVE):
            g = grad_x
            saved_tile = tile(saved_ptr, row, saved_row_stride, ROW_ALIGN, feature, channel, SAVED_STRIDES, SIZES,
                              CHANNEL)
            scale_tile = tile(scale_ptr, row, scale_row_stride, ROW_ALIGN, feature, index, SCALE_STRIDES, SIZES,
                              CHANNEL)
            w = tl.load(saved_tile, mask=parameter_mask, other=0.0).to(COMPUTE)
            s = tl.load(scale_tile, mask=parameter_mask, other=0.0).to(COMPUTE)
            _, factor, slope = scale_map(s, gain, KIND, BIAS, EPS, CLAMP, INVERSE)
            if SHIFT_AT_INPUT == FROM_INPUT:
                shift_tile = tile(shift_ptr, row, shift_row_stride, ROW_ALIGN, feature, index, SHIFT_STRIDES, SIZES,
                                  CHANNEL)
                shift = SIGN * tl.load(shift_tile, mask=parameter_mask, other=0.0).to(COMPUTE)
                w = w + shift if SHIFT_AT_INPUT else w - shift
            if FROM_INPUT:
                w = w * factor
            grad_log_c = g * w
            if grad_log_det_ptr is not None:
                h = tl.load(grad_log_det_ptr + row * grad_log_det_stride, mask=row_mask, other=0.0)
                grad_log_c = tl.fma(g, w, h[:, None])
            grad_log_c = SIGN * grad_log_c
            grad_shift = SIGN * g
            g = g * factor
            if SHIFT_AT_INPUT:
                grad_shift = SIGN * g
            grad_scale_tile = tile(grad_scale_ptr, row, grad_parameters_row_stride, ROW_ALIGN, feature, index,
                                   GRAD_SCALE_STRIDES, SIZES, CHANNEL)
            tl.store(grad_scale_tile, tl.where(active_mask, grad_log_c * slope, 0.0), mask=parameter_mask)
            if grad_gain_ptr is not None:
                grad_gain += tl.where(active_mask, grad_log_c * tanh(s), 0.0)
            grad_x = tl.where(active_mask, g, grad_x)
            grad_shift_tile = tile(grad_shift_ptr, row, grad_parameters_row_stride, ROW_ALIGN, feature, index,
                                   GRAD_SHIFT_STRIDES, SIZES, CHANNEL)
            tl.store(grad_shift_tile, tl.where(active_mask, grad_shift, 0.0), mask=parameter_mask)
        tl.store(grad_x_tile, grad_x, mask=tile_mask)
    if grad_gain_ptr is not None:
        partial = grad_gain_ptr + tl.cast(group, tl.int64) * grad_gain_row_stride
        tl.store(partial + offsets(feature, index, GRAD_GAIN_STRIDES, SIZES, CHANNEL), tl.sum(grad_gain, axis=0),
                 mask=selected)


def affine_coupling_cuda(
    x: Tensor, scale: Tensor | None, shift: Tensor, gain: Tensor | None, mask: Tensor | None, log_det: Tensor | None,
    start: int, step: int, kind: int, bias: float, eps: float, clamp: float, shift_first: bool, inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Launches the forward or inverse kernel: the arguments of the schema `fastflow::affine_coupling`, unchecked."""
    z, rows = torch.empty_like(x), x.shape[0]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.numel() == 0:
        return z, x.new_zeros(rows, dtype=compute) if log_det is None else log_det.clone()
    layout = plan(x.shape[1:], start, step, shift.shape[1], _inner(z), _inner(x), _inner(scale), _inner(shift),
                  _gain_strides(gain, x), None if mask is None else mask.stride())
    z_strides, x_strides, scale_strides, shift_strides, gain_strides, mask_strides = layout.strides
    launch = row_reduction(rows, layout.features, x.element_size(), multiprocessors(x.device))
    splits = launch.feature_programs
    total = x.new_empty((splits, rows) if splits > 1 else rows, dtype=compute)
    with torch.cuda.device_of(x):
        affine_coupling_kernel[launch.row_programs, splits](
            x, scale, shift, gain, mask, log_det, z, total,
            rows, x.stride(0), _first(scale), shift.stride(0), _first(log_det), z.stride(0),
            X_STRIDES=x_strides, SCALE_STRIDES=scale_strides, SHIFT_STRIDES=shift_strides, GAIN_STRIDES=gain_strides,
            MASK_STRIDES=mask_strides, Z_STRIDES=z_strides,
            ROW_ALIGN=row_align(x, scale, shift, z), SIZES=layout.sizes, CHANNEL=layout.channel,
            FEATURES=layout.features, START=layout.start, STEP=layout.step, ACTIVE=layout.active, KIND=kind, BIAS=bias,
            EPS=eps, CLAMP=clamp, SHIFT_FIRST=shift_first, INVERSE=inverse,
            BLOCK_ROWS=launch.block_rows, BLOCK_FEATURES=launch.block_features,
            num_warps=launch.num_warps, enable_fp_fusion=False,
        )
    return z, total.sum(0) if splits > 1 else total


def affine_coupling_backward_cuda(
    grad_z: Tensor, grad_log_det: Tensor | None, saved: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None,
    mask: Tensor | None, start: int, step: int, kind: int, bias: float, eps: float, clamp: float, shift_first: bool,
    inverse: bool, from_input: bool, packing: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the backward kernel: the arguments of `fastflow::affine_coupling_backward`, unchecked."""
    grad_x, grad_parameters, rows = torch.empty_like(saved), empty_packed(scale), saved.shape[0]
    none = scale.new_empty(0)
    if saved.numel() == 0:
        return grad_x, grad_parameters, none if gain is None else torch.zeros_like(gain)
    grad_scale, grad_shift = unpack(grad_parameters, packing)
    features = math.prod(saved.shape[1:])
    launch = column_reduction(rows, features, saved.element_size(), multiprocessors(saved.device), gain is not None)
    partial = None if gain is None else gain.new_empty((launch.row_programs, *shift.shape[1:]))
    layout = plan(saved.shape[1:], start, step, shift.shape[1], _inner(grad_x), _inner(grad_z), _inner(saved),
                  _inner(scale), _inner(shift), _gain_strides(gain, saved), None if mask is None else mask.stride(),
                  _inner(grad_scale), _inner(grad_shift), _inner(partial))
    (grad_x_strides, grad_z_strides, saved_strides, scale_strides, shift_strides, gain_strides, mask_strides,
     grad_scale_strides, grad_shift_strides, partial_strides) = layout.strides
    with torch.cuda.device_of(saved):
        affine_coupling_backward_kernel[launch.row_programs * launch.feature_programs,](
            grad_z, grad_log_det, saved, scale, shift, gain, mask, grad_x, grad_scale, grad_shift, partial,
            rows, grad_z.stride(0), _first(grad_log_det), saved.stride(0), scale.stride(0), shift.stride(0),
            grad_x.stride(0), grad_parameters.stride(0), _first(partial),
            GRAD_Z_STRIDES=grad_z_strides, SAVED_STRIDES=saved_strides, SCALE_STRIDES=scale_strides,
            SHIFT_STRIDES=shift_strides, GAIN_STRIDES=gain_strides, MASK_STRIDES=mask_strides,
            GRAD_X_STRIDES=grad_x_strides, GRAD_SCALE_STRIDES=grad_scale_strides,
            GRAD_SHIFT_STRIDES=grad_shift_strides, GRAD_GAIN_STRIDES=partial_strides,
            ROW_ALIGN=row_align(grad_z, saved, scale, shift, grad_x, grad_parameters),
            SIZES=layout.sizes, CHANNEL=layout.channel, FEATURES=features, START=layout.start, STEP=layout.step,
            ACTIVE=layout.active, KIND=kind, BIAS=bias, EPS=eps, CLAMP=clamp, SHIFT_FIRST=shift_first,
            INVERSE=inverse, FROM_INPUT=from_input,
            BLOCK_ROWS=launch.block_rows, BLOCK_FEATURES=launch.block_features,
            num_warps=launch.num_warps, enable_fp_fusion=False,
        )
    return grad_x, grad_parameters, none if partial is None else partial.sum((0, *range(2, partial.dim())))


def _inner(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tensor.stride()[1:]


def _gain_strides(gain: Tensor | None, x: Tensor) -> tuple[int, ...] | None:
    return None if gain is None else (1,) + (0,) * (x.dim() - 2)


def _first(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)

"""Element-wise bijections without parameters: one kernel for z and log_det, one for the gradient, given the formulas.

MAP(x, SETTINGS) returns (z, what the element adds to log_det); SLOPE(x, g, h, SETTINGS) returns the gradient of x, with
g = grad_z and h = grad_log_det. Both compute in float32, or float64, on whole tiles; OTHER is an x inside their domain
for what lies outside the tensor. Elements moved: forward 2 (x in, z out), backward 3 (grad_z and x in, grad_x out).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import column_reduction, multiprocessors, row_reduction
from .layout import channel_index, plan, row_align, tile


@triton.jit(do_not_specialize=["rows", "x_row_stride", "log_det_stride", "z_row_stride"])
def elementwise_bijection_kernel(
    x_ptr, log_det_ptr, z_ptr, total_ptr, rows, x_row_stride, log_det_stride, z_row_stride,
    X_STRIDES: tl.constexpr, Z_STRIDES: tl.constexpr, ROW_ALIGN: tl.constexpr, SIZES: tl.constexpr,
    CHANNEL: tl.constexpr, FEATURES: tl.constexpr, MAP: tl.constexpr, SETTINGS: tl.constexpr, OTHER: tl.constexpr,
    CONSTANT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_FEATURES: tl.constexpr,
):
    """z; total[split, row] sums over feature blocks split, split + splits, ...; split 0 adds log_det and CONSTANT."""
    COMPUTE: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = row < rows
    log_det = tl.zeros([BLOCK_ROWS, BLOCK_FEATURES], COMPUTE)
    for block in range(split, tl.cdiv(FEATURES, BLOCK_FEATURES), tl.num_programs(1)):
        feature = block * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
        channel = channel_index(feature, SIZES, CHANNEL)
        mask = row_mask[:, None] & (feature < FEATURES)[None, :]
        x_tile = tile(x_ptr, row, x_row_stride, ROW_ALIGN, feature, channel, X_STRIDES, SIZES, CHANNEL)
        z_tile = tile(z_ptr, row, z_row_stride, ROW_ALIGN, feature, channel, Z_STRIDES, SIZES, CHANNEL)
        z, own = MAP(tl.load(x_tile, mask=mask, other=OTHER).to(COMPUTE), SETTINGS)
        log_det += tl.where(mask, own, 0.0)
        tl.store(z_tile, z, mask=mask)
    total = tl.sum(log_det, axis=1)
    if split == 0:
        total += CONSTANT
        if log_det_ptr is not None:
            total += tl.load(log_det_ptr + row * log_det_stride, mask=row_mask, other=0.0)
    tl.store(total_ptr + split.to(tl.int64) * rows + row, total, mask=row_mask)


@triton.jit(do_not_specialize=["rows", "grad_z_row_stride", "grad_log_det_stride", "x_row_stride", "grad_x_row_stride"])
def elementwise_bijection_backward_kernel(
    grad_z_ptr, grad_log_det_ptr, x_ptr, grad_x_ptr,
    rows, grad_z_row_stride, grad_log_det_stride, x_row_stride, grad_x_row_stride,
    GRAD_Z_STRIDES: tl.constexpr, X_STRIDES: tl.constexpr, GRAD_X_STRIDES: tl.constexpr, ROW_ALIGN: tl.constexpr,
    SIZES: tl.constexpr, CHANNEL: tl.constexpr, FEATURES: tl.constexpr, SLOPE: tl.constexpr, SETTINGS: tl.constexpr,
    OTHER: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_FEATURES: tl.constexpr,
):
    """grad_x."""
    COMPUTE: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    FEATURE_BLOCKS: tl.constexpr = (FEATURES + BLOCK_FEATURES - 1) // BLOCK_FEATURES
    row = tl.cast(tl.program_id(0) // FEATURE_BLOCKS, tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    feature = tl.program_id(0) % FEATURE_BLOCKS * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    channel = channel_index(feature, SIZES, CHANNEL)
    row_mask = row < rows
    mask = row_mask[:, None] & (feature < FEATURES)[None, :]
    grad_z_tile = tile(grad_z_ptr, row, grad_z_row_stride, ROW_ALIGN, feature, channel, GRAD_Z_STRIDES, SIZES, CHANNEL)
    x_tile = tile(x_ptr, row, x_row_stride, ROW_ALIGN, feature, channel, X_STRIDES, SIZES, CHANNEL)
    grad_x_tile = tile(grad_x_ptr, row, grad_x_row_stride, ROW_ALIGN, feature, channel, GRAD_X_STRIDES, SIZES, CHANNEL)
    g = tl.load(grad_z_tile, mask=mask, other=0.0).to(COMPUTE)
    x = tl.load(x_tile, mask=mask, other=OTHER).to(COMPUTE)
    h = tl.zeros([BLOCK_ROWS], COMPUTE)
    if grad_log_det_ptr is not None:
        h = tl.load(grad_log_det_ptr + row * grad_log_det_stride, mask=row_mask, other=0.0)
    tl.store(grad_x_tile, SLOPE(x, g, h[:, None], SETTINGS), mask=mask)


def launch(x: Tensor, log_det: Tensor | None, MAP, SETTINGS: tuple, OTHER: float, constant: float = 0.0,
           ) -> tuple[Tensor, Tensor]:
    """(z, log_det); `constant` is what each element adds to log_det whatever its value."""
    z, rows = torch.empty_like(x), x.shape[0]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.numel() == 0:
        return z, x.new_zeros(rows, dtype=compute) if log_det is None else log_det.clone()
    layout = plan(x.shape[1:], 0, 1, x.shape[1], z.stride()[1:], x.stride()[1:])
    z_strides, x_strides = layout.strides
    launch = row_reduction(rows, layout.features, x.element_size(), multiprocessors(x.device))
    splits = launch.feature_programs
    total = x.new_empty((splits, rows) if splits > 1 else rows, dtype=compute)
    with torch.cuda.device_of(x):
        elementwise_bijection_kernel[launch.row_programs, splits](
            x, log_det, z, total,
            rows, x.stride(0), 0 if log_det is None else log_det.stride(0), z.stride(0),
            X_STRIDES=x_strides, Z_STRIDES=z_strides, ROW_ALIGN=row_align(x, z), SIZES=layout.sizes,
            CHANNEL=layout.channel, FEATURES=layout.features, MAP=MAP, SETTINGS=SETTINGS, OTHER=OTHER,
            CONSTANT=layout.features * constant, BLOCK_ROWS=launch.block_rows, BLOCK_FEATURES=launch.block_features,
            num_warps=launch.num_warps, enable_fp_fusion=False,
        )
    return z, total.sum(0) if splits > 1 else total


def launch_backward(grad_z: Tensor, grad_log_det: Tensor | None, x: Tensor, SLOPE, SETTINGS: tuple, OTHER: float,
                    ) -> Tensor:
    """grad_x."""
    grad_x, rows = torch.empty_like(x), x.shape[0]
    if x.numel() == 0:
        return grad_x
    layout = plan(x.shape[1:], 0, 1, x.shape[1], grad_x.stride()[1:], grad_z.stride()[1:], x.stride()[1:])
    grad_x_strides, grad_z_strides, x_strides = layout.strides
    launch = column_reduction(rows, layout.features, x.element_size(), multiprocessors(x.device), False)
    with torch.cuda.device_of(x):
        elementwise_bijection_backward_kernel[launch.row_programs * launch.feature_programs,](
            grad_z, grad_log_det, x, grad_x,
            rows, grad_z.stride(0), 0 if grad_log_det is None else grad_log_det.stride(0), x.stride(0),
            grad_x.stride(0),
            GRAD_Z_STRIDES=grad_z_strides, X_STRIDES=x_strides, GRAD_X_STRIDES=grad_x_strides,
            ROW_ALIGN=row_align(grad_z, x, grad_x), SIZES=layout.sizes, CHANNEL=layout.channel,
            FEATURES=layout.features, SLOPE=SLOPE, SETTINGS=SETTINGS, OTHER=OTHER,
            BLOCK_ROWS=launch.block_rows, BLOCK_FEATURES=launch.block_features,
            num_warps=launch.num_warps, enable_fp_fusion=False,
        )
    return grad_x

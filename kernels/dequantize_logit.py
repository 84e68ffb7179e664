"""Dequantisation and logit: one pass over memory, the noise made in registers.

Bytes moved for an element: 1 (a uint8 grey level in), 4 (float32 z out). Computed: a quarter of a Philox evaluation and
two logarithms. Floor on an H200 at 4.3 TB/s, [65536, 784]: 60 us. Not measured on a GPU yet.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import multiprocessors, row_reduction
from .layout import check_features
from .logit import logit_forward
from .numerics import divide
from .uniform_noise import noise_tile


@triton.jit(do_not_specialize=["rows", "index_stride"])
def dequantize_logit_kernel(
    x_ptr, seed_ptr, step_ptr, index_ptr, z_ptr, total_ptr, rows, index_stride,
    FEATURES: tl.constexpr, LEVELS: tl.constexpr, ALPHA: tl.constexpr, CONTRACTION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_FEATURES: tl.constexpr,
):
    """z; total[split, row] sums over feature blocks split, split + splits, ...; split 0 adds CONTRACTION, what the
    contraction alone adds to a row. x and z are dense; index_ptr holds the global index of each row, or no noise."""
    COMPUTE: tl.constexpr = total_ptr.dtype.element_ty
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = row < rows
    if index_ptr is not None:
        seed, step = tl.load(seed_ptr), tl.load(step_ptr)
        index = tl.load(index_ptr + row * index_stride, mask=row_mask, other=0)
    log_det = tl.zeros([BLOCK_ROWS, BLOCK_FEATURES], COMPUTE)
    for block in range(split, tl.cdiv(FEATURES, BLOCK_FEATURES), tl.num_programs(1)):
        feature = block * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
        mask = row_mask[:, None] & (feature < FEATURES)[None, :]
        place = (row * FEATURES)[:, None] + feature[None, :]
        level = tl.load(x_ptr + place, mask=mask, other=0).to(COMPUTE)
        if index_ptr is not None:
            first = block * (BLOCK_FEATURES // 4)
            level += noise_tile(seed, step, index, first + tl.arange(0, BLOCK_FEATURES // 4)).to(COMPUTE)
        else:
            level += 0.5
        z, own = logit_forward(divide(level, tl.full(level.shape, LEVELS, COMPUTE)), ALPHA)
        log_det += tl.where(mask, own, 0.0)
        tl.store(z_ptr + place, z, mask=mask)
    total = tl.sum(log_det, axis=1)
    if split == 0:
        total += CONTRACTION
    tl.store(total_ptr + split.to(tl.int64) * rows + row, total, mask=row_mask)


def dequantize_logit_cuda(x: Tensor, seed: Tensor | None, step: Tensor | None, rows: Tensor | None, levels: int,
                          alpha: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Launches the kernel: the arguments of the schema `fastflow::dequantize_logit`, unchecked."""
    count, features = x.shape[0], x.shape[1:].numel()
    z, compute = x.new_empty(x.shape, dtype=dtype), torch.float64 if dtype == torch.float64 else torch.float32
    if x.numel() == 0:
        return z, x.new_zeros(count, dtype=compute)
    check_features(x.shape[1:])
    launch = row_reduction(count, features, z.element_size(), multiprocessors(x.device))
    splits = launch.feature_programs
    total = x.new_empty((splits, count) if splits > 1 else count, dtype=compute)
    with torch.cuda.device_of(x):
        dequantize_logit_kernel[launch.row_programs, splits](
            x.contiguous(), seed, step, rows, z, total, count, 0 if rows is None else rows.stride(0),
            FEATURES=features, LEVELS=levels, ALPHA=alpha, CONTRACTION=features * math.log1p(-alpha),
            BLOCK_ROWS=launch.block_rows, BLOCK_FEATURES=max(4, launch.block_features),
            num_warps=launch.num_warps, enable_fp_fusion=False,
        )
    return z, total.sum(0) if splits > 1 else total

"""Dequantisation and logit in one pass over memory: from integer grey levels to the real line.

    v = (x + u) / levels                  p = (1 - alpha) v + alpha / 2                  z = log p - log(1 - p)
    log_det = sum of log(1 - alpha) - log p - log(1 - p)

u is `uniform_noise`, drawn where it is used, or 1/2. The results are those of `dequantize` and then `logit`: log_det is
that of v -> z, and the D log(levels) nats between the density of v and the probability of x are the caller's.
"""

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import COMPUTE_DTYPE, bad_dtype, bad_type, check_device, check_dims, check_log_det
from fastflow.ops._define import Op, under_transform
from fastflow.ops.dequantize import check_levels
from fastflow.ops.logit import check_alpha
from fastflow.ops.logit import reference as logit_reference
from fastflow.ops.uniform_noise import noise_key
from fastflow.ops.uniform_noise import reference as noise_reference


def reference(x: Tensor, seed: Tensor | None, step: Tensor | None, rows: Tensor | None, levels: int, alpha: float,
              dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The definition: z in `dtype`, and log_det. Arguments as in the schema; seed, step and rows all three or none."""
    x, compute = x.contiguous(), COMPUTE_DTYPE[dtype]
    noise = 0.5
    if seed is not None:
        noise = noise_reference(seed, step, rows, x.shape[1:].numel(), compute).view(x.shape)
    z, log_det = logit_reference((x.to(compute) + noise) / levels, None, alpha, False)
    return z.to(dtype), log_det


def _fake(x, seed, step, rows, levels, alpha, dtype):
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[0], dtype=COMPUTE_DTYPE[dtype])


_op = Op("dequantize_logit",
         "(Tensor x, Tensor? seed, Tensor? step, Tensor? rows, int levels, float alpha, ScalarType dtype)"
         " -> (Tensor, Tensor)",
         reference=reference, fallback=reference, fake=_fake, on_cuda="triton")


def dequantize_logit(x: Tensor, *, levels: int, alpha: float = 0.05, seed: int | Tensor | None = None,
                     step: int | Tensor = 0, rows: Tensor | None = None, log_det: Tensor | None = None,
                     dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """The logits of dequantised grey levels, with their log-determinant.

    x        integers [B, C, *spatial], 2 to 5 dims, 0 .. levels - 1; uint8 is read as it is, others as int32
    levels   at least 2
    alpha    how much of [0, 1] the contraction gives up, 0 <= alpha < 1
    seed, step, rows   of the noise, as in `uniform_noise`, rows on x's device; seed None: 1/2, the deterministic middle
             of every level
    log_det  [B] running log-determinant in nats, float32 (float64 for dtype float64)
    dtype    of z: float64, float32, bfloat16 or float16; by default the default dtype

    Returns (z, log_det), z contiguous; of the arguments only log_det has a gradient. Raises TypeError or ValueError
    naming the argument, also, where looking costs nothing (on CPU), for a value out of range.
    """
    op = "dequantize_logit"
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(x, Tensor):
        raise bad_type(op, "x", x)
    if x.is_floating_point():
        raise bad_dtype(op, "x", x, "an integer dtype; dequantised data go to logit")
    if dtype not in COMPUTE_DTYPE:
        raise TypeError(f"{op}: dtype is {dtype}, expected float64, float32, bfloat16 or float16")
    check_dims(op, x)
    check_levels(op, x, levels)
    check_alpha(op, alpha)
    if seed is None:
        if rows is not None:
            raise ValueError(f"{op}: rows is given and seed is None, expected both or neither")
        key = None, None, None
    else:
        key = noise_key(op, tuple(x.shape), seed, step, rows)
        check_device(op, x, rows=rows)
    x = x if x.dtype == torch.uint8 else x.to(torch.int32)
    kernel = reference if under_transform() else _op.kernel(_backend.forced(), x.device.type)
    z, own = kernel(x, *key, levels, alpha, dtype)
    if log_det is not None:
        check_log_det(op, z, log_det)
        own = log_det + own
    return z, own

"""Activation normalisation: one shift and one scale a channel.

    z = (x - shift) exp(log_scale)          x = z exp(-log_scale) + shift
    log_det = pixels * sum of log_scale     (negated for the inverse)

`act_norm_statistics` gives the parameters with which a batch comes out with mean 0 and standard deviation 1.
Glow (Kingma and Dhariwal 2018, arXiv 1807.03039, section 3.1).
"""

import math

import torch
from torch import Tensor

from fastflow.ops._checks import bad_shape, check_device, check_dims, check_float, compute_dtype, start_log_det


def act_norm(x: Tensor, shift: Tensor, log_scale: Tensor, *, log_det: Tensor | None = None, inverse: bool = False,
             ) -> tuple[Tensor, Tensor]:
    """Normalises every channel by its own shift and scale.

    x          [B, C, *spatial], 2 to 5 dims, float64/float32/bfloat16/float16
    shift      [C]
    log_scale  [C], nats
    log_det    [B] running log-determinant in nats, float32 (float64 for float64 x)

    Returns (z, log_det), z in x's dtype. Raises TypeError or ValueError naming the argument.
    """
    op = "act_norm"
    check_float(op, "x", x)
    check_dims(op, x)
    for name, value in (("shift", shift), ("log_scale", log_scale)):
        check_float(op, name, value)
        if value.shape != x.shape[1:2]:
            raise bad_shape(op, name, value, tuple(x.shape[1:2]), "to match the channels of x")
    check_device(op, x, shift=shift, log_scale=log_scale)
    start = start_log_det(op, x, log_det)
    dtype = compute_dtype(x)
    shift, log_scale = shift.to(dtype), log_scale.to(dtype)
    own = math.prod(x.shape[2:]) * log_scale.sum()
    shift, log_scale = (value.view(-1, *[1] * (x.dim() - 2)) for value in (shift, log_scale))
    if inverse:
        return (x * torch.exp(-log_scale) + shift).to(x.dtype), start - own
    return ((x - shift) * torch.exp(log_scale)).to(x.dtype), start + own


@torch.no_grad()
def act_norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, log_scale), each [C] in float64: mean and -log(std + 1e-6) of every channel of x [B, C, *spatial].

    The standard deviation is the unbiased one over batch and space. Raises ValueError for fewer than 2 rows, for values
    that are not finite, and for a channel without variance: all would leave a scale that no training mends.
    """
    op = "act_norm_statistics"
    check_float(op, "x", x)
    check_dims(op, x)
    if x.shape[0] < 2:
        raise ValueError(f"{op}: x has {x.shape[0]} row(s), expected at least 2 to measure a variance")
    values = x.double().transpose(0, 1).flatten(1)
    mean, std = values.mean(1), values.std(1)
    if not bool((mean.isfinite() & std.isfinite()).all()):
        raise ValueError(f"{op}: x has values that are not finite, expected finite ones")
    # Below this a spread is the rounding of a constant in float32.
    constant = std <= 1e-8 * mean.abs()
    if bool(constant.any()):
        channels = constant.nonzero().flatten().tolist()
        some = ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")
        raise ValueError(f"{op}: x has zero variance in {len(channels)} of {len(constant)} channels ({some}), expected "
                         "a batch that varies in every channel; take a larger one, or add the dequantisation noise")
    return mean, -torch.log(std + 1e-6)

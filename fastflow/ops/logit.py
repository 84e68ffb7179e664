"""Logit: carries data in [0, 1] to the real line, after a contraction that keeps the ends finite.

    p = (1 - alpha) x + alpha / 2         z = log p - log(1 - p)         x = (sigmoid(z) - alpha / 2) / (1 - alpha)
    log_det = sum of log(1 - alpha) - log p - log(1 - p)                  (negated for the inverse)

RealNVP (Dinh et al. 2017, arXiv 1605.08803, section 4.1) with alpha 0.1; SCNF with alpha 0.05.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.ops._checks import check_dims, check_float, compute_dtype, start_log_det


def logit(x: Tensor, *, alpha: float = 0.05, log_det: Tensor | None = None, inverse: bool = False,
          ) -> tuple[Tensor, Tensor]:
    """The logit of contracted data, or its exact inverse.

    x        [B, C, *spatial], 2 to 5 dims, float64/float32/bfloat16/float16; forward: in [0, 1], in (0, 1) for alpha 0
    alpha    how much of [0, 1] the contraction gives up, 0 <= alpha < 1
    log_det  [B] running log-determinant in nats, float32 (float64 for float64 x)

    Returns (z, log_det), z in x's dtype. The inverse maps all of R, so a z that no data made may give x a little
    outside [0, 1]. Raises TypeError or ValueError naming the argument.
    """
    op = "logit"
    check_float(op, "x", x)
    check_dims(op, x)
    if not 0 <= alpha < 1:
        raise ValueError(f"{op}: alpha is {alpha}, expected at least 0 and less than 1")
    start = start_log_det(op, x, log_det)
    v = x.to(compute_dtype(x))
    if inverse:
        # -log p - log(1 - p) from z itself: exact where the sigmoid has already rounded to 0 or 1.
        own = F.softplus(v) + F.softplus(-v) + math.log1p(-alpha)
        return ((torch.sigmoid(v) - alpha / 2) / (1 - alpha)).to(x.dtype), start - own.flatten(1).sum(1)
    p = (1 - alpha) * v + alpha / 2
    log_p, log_rest = torch.log(p), torch.log1p(-p)
    own = math.log1p(-alpha) - log_p - log_rest
    return (log_p - log_rest).to(x.dtype), start + own.flatten(1).sum(1)

"""Factor-out: half of the channels leave a multi-scale flow as latents, the rest goes on. log_det is 0.

    x [B, C, *spatial] -> aux [B, k pixels], the channels [0, k) flattened, and rest [B, C - k, *spatial]

k is C / 2, rounded down and then up to even, so that the rest splits into halves again. RealNVP (Dinh
et al. 2017, arXiv 1605.08803, section 3.6).
"""

import math

import torch
from torch import Tensor

from fastflow.ops._checks import bad_shape, check_dims, check_float


def factored_channels(channels: int) -> int:
    """How many of `channels` channels leave; raises ValueError where none would be left."""
    leaving = channels // 2 + channels // 2 % 2
    if leaving >= channels or leaving == 0:
        raise ValueError(f"factor_out: x has {channels} channel(s), of which {leaving} would leave and "
                         f"{channels - leaving} stay, expected some of both: at least 3 channels")
    return leaving


def factor_out(x: Tensor) -> tuple[Tensor, Tensor]:
    """Splits x [B, C, *spatial] into (aux [B, k pixels], rest [B, C - k, *spatial]), 2 to 5 dims.

    Raises TypeError or ValueError naming the argument; C = 2 is refused, it would leave no channel.
    """
    check_float("factor_out", "x", x)
    check_dims("factor_out", x)
    leaving = factored_channels(x.shape[1])
    return x[:, :leaving].flatten(1), x[:, leaving:]


def factor_out_inverse(aux: Tensor, rest: Tensor) -> Tensor:
    """Puts x [B, C, *spatial] together again from what `factor_out` gave."""
    op = "factor_out_inverse"
    check_float(op, "aux", aux)
    check_float(op, "rest", rest)
    check_dims(op, rest)
    pixels = math.prod(rest.shape[2:])
    leaving = aux.shape[1] // pixels if aux.dim() == 2 else 0
    if aux.shape != (rest.shape[0], leaving * pixels) or factored_channels(leaving + rest.shape[1]) != leaving:
        raise bad_shape(op, "aux", aux, "what factor_out gave", f"with rest {tuple(rest.shape)}")
    return torch.cat([aux.view(rest.shape[0], leaving, *rest.shape[2:]), rest], dim=1)

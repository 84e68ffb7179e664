"""From grey levels to the real line, at the door of a flow that does not begin with a `Logit` of its own."""

import torch
from torch import Tensor, nn

from fastflow.nn.noise_stream import NoiseStream
from fastflow.ops.dequantize import quantize
from fastflow.ops.dequantize_logit import dequantize_logit
from fastflow.ops.logit import logit


class DequantizeLogit(nn.Module):
    """`Dequantize(levels)` and `Logit(alpha)` in one pass, the noise drawn where it is used.

    Many v stand for one x, so this is no bijection: log_det is that of the logit. See `ops.dequantize_logit`.
    """

    def __init__(self, levels: int, alpha: float = 0.05) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"DequantizeLogit: levels is {levels}, expected at least 2")
        self.levels, self.alpha = levels, alpha

    def forward(self, x: Tensor, noise: NoiseStream | None = None, rows: Tensor | None = None,
                log_det: Tensor | None = None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """(z, log_det) of integer x [B, C, *spatial].

        noise  moves on by one draw, which is for the global rows [B]; None: 1/2, without rows
        """
        key = {} if noise is None else noise.next_key()
        return dequantize_logit(x, levels=self.levels, alpha=self.alpha, rows=rows, log_det=log_det, dtype=dtype, **key)

    def inverse(self, z: Tensor) -> Tensor:
        """The grey levels of z, int64."""
        return quantize(logit(z, alpha=self.alpha, inverse=True)[0], levels=self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, alpha={self.alpha}"

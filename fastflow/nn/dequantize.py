"""The step between grey levels and continuous data."""

import torch
from torch import Tensor, nn

from fastflow.ops.dequantize import dequantize, quantize


class Dequantize(nn.Module):
    """v = (x + noise) / levels in [0, 1): what a flow models of an image with grey levels 0 .. levels - 1.

    levels is 256 for MNIST and 17 for the digits of scikit-learn, whose pixels are 0 .. 16. Many v stand for one x, so
    this is no bijection and has no log-determinant; `inverse` is the level that a v lies in. See `ops.dequantize`.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"Dequantize: levels is {levels}, expected at least 2")
        self.levels = levels

    def forward(self, x: Tensor, noise: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """[B, ...] floats in [0, 1); noise of x's shape in [0, 1), None: 1/2. Float x passes as already dequantised."""
        return dequantize(x, noise, levels=self.levels, dtype=dtype)

    def inverse(self, v: Tensor) -> Tensor:
        """The grey levels of v, int64."""
        return quantize(v, levels=self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"

"""The element-wise affine layer."""

import math

import torch
from torch import Tensor, nn

from fastflow.nn.bijection import Bijection
from fastflow.ops.act_norm import act_norm_statistics
from fastflow.ops.elementwise_affine import elementwise_affine


class ElementwiseAffine(Bijection):
    """y = x exp(log_scale) + shift, learned; one shift and one scale an element, or a channel.

    shape is that of the parameters: (C, *spatial), a sample's, for one an element; (C,) or C for one a channel. x
    [B, C, *spatial]. It is the identity until `initialize(batch)` starts it from data, with the standard deviation
    `std`, or for good where that is never called; the buffer `initialized` tells. `initialize` raises ValueError for
    fewer than 2 rows or an element (a channel) without variance. Source: the affine layer of TzK, Livne and Fleet 2018,
    arXiv 1811.01837.
    """

    def __init__(self, shape: int | tuple[int, ...], std: float = 1.0) -> None:
        super().__init__()
        self.std = std
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.shift = nn.Parameter(torch.zeros(self.shape))
        self.log_scale = nn.Parameter(torch.zeros(self.shape))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return elementwise_affine(x, self.shift, self.log_scale, log_det=log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return elementwise_affine(z, self.shift, self.log_scale, log_det=log_det, inverse=True)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if tuple(shape) != self.shape and tuple(shape[:1]) != self.shape:
            raise ValueError(f"its parameters have shape {self.shape}")
        return shape

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Takes shift and log_scale from x, so that x comes out with mean 0 and standard deviation `std` an element (a
        channel)."""
        mean, log_scale = act_norm_statistics(x if len(self.shape) == 1 else x.flatten(1))
        log_scale = log_scale + math.log(self.std)
        self.shift.copy_((-mean * log_scale.exp()).view(self.shape))
        self.log_scale.copy_(log_scale.view(self.shape))
        self.initialized.fill_(True)

    def extra_repr(self) -> str:
        return f"{self.shape}"

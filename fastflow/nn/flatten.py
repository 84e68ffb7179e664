"""The layer between an image flow and a flow on vectors."""

import math

from torch import Tensor

from fastflow.nn.bijection import Bijection
from fastflow.ops._checks import start_log_det


class Flatten(Bijection):
    """[B, *shape] to [B, D], D = prod(shape), and back; log-determinant 0. `shape` is that of one sample."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), start_log_det("Flatten", x, log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.reshape(z.shape[0], *self.shape), start_log_det("Flatten", z, log_det)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if tuple(shape) != self.shape:
            raise ValueError(f"it was built for samples of shape {self.shape}")
        return (math.prod(shape),)

    def extra_repr(self) -> str:
        return f"{self.shape}"

"""The layer that puts channels in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastflow.nn.bijection import Bijection
from fastflow.ops._checks import start_log_det
from fastflow.ops.channel_map import ChannelMap
from fastflow.ops.permute import inverted, permute


class Permutation(Bijection):
    """z[:, i] = x[:, permutation[i]], a fixed order of the channels, with log-determinant 0. x [B, C, *spatial].

    permutation  C integers, each of 0 to C - 1 once; a buffer, so that a loaded layer has the order it was saved with

    `Permutation.reverse(C)` and `Permutation.random(C, seed)` make the usual ones. There is no kernel: both directions
    and the gradient are PyTorch's index_select; beside a mix a flow makes it a part of that one's matrix. Raises
    TypeError or ValueError for what is no permutation.
    """

    def __init__(self, permutation: Sequence[int] | Tensor) -> None:
        super().__init__()
        permutation = torch.as_tensor(permutation).detach().clone()
        inverted("Permutation", permutation)
        self.register_buffer("permutation", permutation)

    @classmethod
    def reverse(cls, channels: int) -> Permutation:
        """The last channel first."""
        return cls(torch.arange(channels - 1, -1, -1))

    @classmethod
    def random(cls, channels: int, seed: int) -> Permutation:
        """An order drawn from the seed alone, the same on every rank."""
        return cls(torch.randperm(channels, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return permute(x, self.permutation), start_log_det("permute", x, log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return permute(z, self.permutation, inverse=True), start_log_det("permute", z, log_det)

    def channel_map(self, inverse: bool) -> ChannelMap:
        """The same as a map of the channels, in float64."""
        size = len(self.permutation)
        matrix = torch.eye(size, dtype=torch.float64, device=self.permutation.device)[self.permutation]
        return ChannelMap(matrix.T if inverse else matrix, matrix.new_zeros(()))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[0] != len(self.permutation):
            raise ValueError(f"it permutes {len(self.permutation)} channels")
        return shape

    def extra_repr(self) -> str:
        return f"{len(self.permutation)}"

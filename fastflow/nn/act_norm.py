"""The activation normalisation layer."""

import torch
from torch import Tensor, nn

from fastflow.nn.bijection import Bijection
from fastflow.ops.act_norm import act_norm, act_norm_statistics
from fastflow.ops.channel_map import ChannelMap


class ActNorm(Bijection):
    """z = (x - shift) exp(log_scale), one shift and one scale a channel, started from data by `initialize(batch)`.

    x [B, channels, *spatial]. Until it is initialized it is the identity; forward never looks at the flag, so it needs
    no device synchronisation. The flag `initialized` is a buffer: saving and loading keeps a started layer started.
    `initialize` raises ValueError for fewer than 2 rows or a channel without variance.
    Source: Kingma and Dhariwal 2018, "Glow", section 3.1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return act_norm(x, self.shift, self.log_scale, log_det=log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return act_norm(z, self.shift, self.log_scale, log_det=log_det, inverse=True)

    def channel_map(self, inverse: bool) -> ChannelMap:
        """The same as a map of the channels, in float64."""
        shift, log_scale = self.shift.double(), self.log_scale.double()
        if inverse:
            return ChannelMap(torch.diag(torch.exp(-log_scale)), -log_scale.sum(), shift=shift)
        return ChannelMap(torch.diag(log_scale.exp()), log_scale.sum(), center=shift)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[0] != self.channels:
            raise ValueError(f"it normalises {self.channels} channels")
        return shape

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Takes shift and scale from x, so that x comes out with mean 0 and standard deviation 1 a channel."""
        shift, log_scale = act_norm_statistics(x)
        self.shift.copy_(shift)
        self.log_scale.copy_(log_scale)
        self.initialized.fill_(True)

    def extra_repr(self) -> str:
        return f"{self.channels}"

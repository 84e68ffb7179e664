"""The invertible 1x1 convolution layer."""

import torch
from torch import Tensor, nn

from fastflow.nn.bijection import Bijection
from fastflow.ops.channel_map import PLU, ChannelMap, channel_map, plu
from fastflow.ops.channel_mix import channel_mix

KINDS = ("full", "plu")


class ChannelMix(Bijection):
    """z = W x on the channels of every pixel, W a learned [channels, channels] matrix.

    kind    "full": W itself is the parameter; its log|det| takes one LU factorisation a call, in float64
            "plu":  W = P L (U + diag(sign exp(log_scale))) with P and sign fixed; log|det| is a sum
    weight  the matrix to start from, by default the identity; with "plu" its permutation stays for good

    x [B, channels, *spatial]. Raises ValueError for an unknown kind, or for "plu" of a singular matrix.
    Source: Kingma and Dhariwal 2018, "Glow", section 3.2.
    """

    def __init__(self, channels: int, kind: str = "full", weight: Tensor | None = None) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"ChannelMix: kind is {kind!r}, expected one of {', '.join(KINDS)}")
        weight = torch.eye(channels) if weight is None else weight.detach()
        if weight.shape != (channels, channels):
            raise ValueError(f"ChannelMix: weight has shape {tuple(weight.shape)}, expected {(channels, channels)}")
        self.channels, self.kind = channels, kind
        if kind == "full":
            self.weight = nn.Parameter(weight.clone())
            return
        factors, dtype = plu(weight), weight.dtype
        self.register_buffer("permutation", factors.permutation)
        self.register_buffer("sign", factors.sign.to(dtype))
        self.lower = nn.Parameter(factors.lower.to(dtype))
        self.upper = nn.Parameter(factors.upper.to(dtype))
        self.log_scale = nn.Parameter(factors.log_scale.to(dtype))

    @property
    def mixing(self) -> Tensor | PLU:
        """The matrix as `ops.channel_mix` takes it."""
        if self.kind == "full":
            return self.weight
        return PLU(self.permutation, self.lower, self.upper, self.log_scale, self.sign)

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return channel_mix(x, self.mixing, log_det=log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return channel_mix(z, self.mixing, log_det=log_det, inverse=True)

    def channel_map(self, inverse: bool) -> ChannelMap:
        """The same as a map of the channels, in float64."""
        return channel_map(self.mixing, inverse)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[0] != self.channels:
            raise ValueError(f"it mixes {self.channels} channels")
        return shape

    def extra_repr(self) -> str:
        return f"{self.channels}, kind={self.kind!r}"

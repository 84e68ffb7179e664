"""The invertible 1x1 convolution layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.nn.bijection import Bijection
from fastflow.ops.channel_map import PLU, QR, ChannelMap, Householder, Weight, channel_map, plu
from fastflow.ops.channel_mix import channel_mix

KINDS = ("full", "plu", "householder", "qr", "qr_abs")


class ChannelMix(Bijection):
    """z = W x on the channels of every pixel, W a learned [channels, channels] matrix.

    kind         "full": W itself is the parameter; its log|det| takes one elimination a call, in float64
                 "plu": W = P L (U + diag(sign exp(log_scale))) with P and sign fixed; log|det| is a sum
                 "householder": W = H_1 ... H_n is a rotation or reflection; log|det| is 0
                 "qr": W = H_1 ... H_n (U + diag(softplus(scale))), which starts by shrinking: softplus(0) = ln 2
                 "qr_abs": W = H_1 ... H_n (U + diag(scale)), scale 1 at the start
    weight       "full" and "plu": the matrix to start from, by default the identity; with "plu" its permutation stays
    reflections  n of the other kinds, whose vectors start as random directions; 2 by default

    x [B, channels, *spatial]. Raises ValueError for an unknown kind, for "plu" of a singular matrix, or for a weight or
    a number of reflections that the kind does not take.
    Source: Kingma and Dhariwal 2018, "Glow", section 3.2; Hoogeboom et al. 2019, "Emerging convolutions", section 4.
    """

    def __init__(self, channels: int, kind: str = "full", weight: Tensor | None = None,
                 reflections: int | None = None) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"ChannelMix: kind is {kind!r}, expected one of {', '.join(KINDS)}")
        self.channels, self.kind = channels, kind
        if kind in ("full", "plu"):
            if reflections is not None:
                raise ValueError(f"ChannelMix: reflections is {reflections} for kind {kind!r}, expected None")
            self._start_from(torch.eye(channels) if weight is None else weight.detach())
            return
        if weight is not None:
            raise ValueError(f"ChannelMix: weight is given for kind {kind!r}, expected None: it starts at random")
        reflections = 2 if reflections is None else reflections
        if reflections < 1:
            raise ValueError(f"ChannelMix: reflections is {reflections}, expected at least 1")
        self.vectors = nn.Parameter(F.normalize(torch.rand(reflections, channels) * 2 - 1))
        if kind != "householder":
            self.upper = nn.Parameter(torch.zeros(channels, channels))
            self.scale = nn.Parameter(torch.zeros(channels) if kind == "qr" else torch.ones(channels))

    def _start_from(self, weight: Tensor) -> None:
        if weight.shape != (self.channels, self.channels):
            raise ValueError(f"ChannelMix: weight has shape {tuple(weight.shape)}, expected "
                             f"{(self.channels, self.channels)}")
        if self.kind == "full":
            self.weight = nn.Parameter(weight.clone())
            return
        factors, dtype = plu(weight), weight.dtype
        self.register_buffer("permutation", factors.permutation)
        self.register_buffer("sign", factors.sign.to(dtype))
        self.lower = nn.Parameter(factors.lower.to(dtype))
        self.upper = nn.Parameter(factors.upper.to(dtype))
        self.log_scale = nn.Parameter(factors.log_scale.to(dtype))

    @property
    def mixing(self) -> Weight:
        """The matrix as `ops.channel_mix` takes it."""
        if self.kind == "full":
            return self.weight
        if self.kind == "plu":
            return PLU(self.permutation, self.lower, self.upper, self.log_scale, self.sign)
        if self.kind == "householder":
            return Householder(self.vectors)
        return QR(self.vectors, self.upper, F.softplus(self.scale.double()) if self.kind == "qr" else self.scale)

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

"""The flows that the models are built from: image trunks, vector trunks, and the conditional flow of a class head."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    ChannelMix,
    ConvResidualNet,
    FactorOut,
    Flatten,
    FlowSequential,
    Logit,
    ResidualMLP,
    Split,
    Squeeze,
)
from fastflow.ops import ScaleMap
from fastflow.ops.factor_out import factored_channels

# z = (x + t) (sigmoid(s + 2) + 1e-6) on halves, z = x sigmoid(s + 2) + t on a checkerboard: SCNF's two forms.
HALVES_MAP = ScaleMap("sigmoid", bias=2.0, eps=1e-6, shift_first=True)
MASKED_MAP = ScaleMap("sigmoid", bias=2.0)


def conv_trunk(image: Sequence[int], *, scales: int = 3, masked_steps: int = 3, channel_steps: int = 2,
               hidden: int = 64, blocks: int = 4, dropout: float = 0.0, alpha: float = 0.05,
               reversible: bool = False) -> FlowSequential:
    """The multi-scale image flow of SCNF, a mix of Glow and RealNVP: [B, *image] to [B, D], z = [z_aux | z_f].

    image          (C, H, W); H and W divisible by 2^(scales - 1), and at least 2 pixels at the last scale
    scales         at each scale `masked_steps` times (mix, checkerboard coupling, norm), squeeze, `channel_steps`
                   times (mix, coupling of both halves, norm), factor out; the last one neither squeezes nor factors
                   out, and is z_f
    hidden, blocks, dropout   of the `ConvResidualNet`s
    alpha          of the logit that comes first
    reversible     trains in memory that does not grow with depth; see `FlowSequential`

    The defaults on (1, 28, 28) are the published MNIST trunk: 6,299,987 parameters, z_f of 196 features.
    Source: Atanov et al. 2019 (SCNF, arXiv 1905.00505).
    """
    channels, height, width = image
    if min(height, width) >> scales - 1 < 2:
        raise ValueError(f"conv_trunk: image is {height} x {width}, expected at least {2**scales} x {2**scales} pixels "
                         f"for {scales} scales")
    layers: list[nn.Module] = [Logit(alpha)]

    def net(inputs: int, outputs: int) -> ConvResidualNet:
        return ConvResidualNet(inputs, outputs, hidden, blocks, dropout)

    for scale in range(scales):
        for step in range(masked_steps):
            board = Split.checkerboard((channels, height, width), parity=step % 2)
            layers += [ChannelMix(channels), AffineCoupling(net(channels, 2 * channels), board, MASKED_MAP),
                       ActNorm(channels)]
        last = scale == scales - 1
        if not last:
            layers.append(Squeeze())
            channels, height, width = 4 * channels, height // 2, width // 2
        for _ in range(channel_steps):
            layers += [ChannelMix(channels), *_both_halves(channels, net), ActNorm(channels)]
        if not last:
            layers.append(FactorOut())
            channels -= factored_channels(channels)
    return FlowSequential(layers, image, reversible=reversible)


def vector_trunk(image: Sequence[int], *, scales: int = 2, steps: int = 4, hidden: int = 128, blocks: int = 1,
                 dropout: float = 0.0, alpha: float = 0.05, reversible: bool = False) -> FlowSequential:
    """A multi-scale flow of flattened images with `ResidualMLP`s, for images too small for convolutions.

    Logit, flatten, then at each scale `steps` times (norm, mix, coupling of both halves), factor out; the last scale
    does not factor out, and is z_f. z [B, D] = [z_aux | z_f].
    """
    features = math.prod(image)
    layers: list[nn.Module] = [Logit(alpha), Flatten(tuple(image))]

    def net(inputs: int, outputs: int) -> ResidualMLP:
        return ResidualMLP(inputs, outputs, hidden, blocks, dropout)

    for scale in range(scales):
        for _ in range(steps):
            layers += [ActNorm(features), ChannelMix(features), *_both_halves(features, net)]
        if scale < scales - 1:
            layers.append(FactorOut())
            features -= factored_channels(features)
    return FlowSequential(layers, image, reversible=reversible)


def conditional_flow(features: int, context_features: int, *, levels: int = 2, steps: int = 4, hidden: int = 256,
                     blocks: int = 4, dropout: float = 0.0) -> FlowSequential:
    """The class-conditional flow of SCNF's head on [B, features], conditioned on [B, context_features].

    At each of `levels`, `steps` times (norm, mix, coupling of both halves); between levels half of the features factor
    out. The defaults with 196 features and context 10 are the published head: with its embedding 9,574,676 parameters.
    Source: Atanov et al. 2019 (SCNF, arXiv 1905.00505).
    """
    layers: list[nn.Module] = []
    width = features

    def net(inputs: int, outputs: int) -> ResidualMLP:
        return ResidualMLP(inputs, outputs, hidden, blocks, dropout, context_features)

    for level in range(levels):
        for _ in range(steps):
            layers += [ActNorm(width), ChannelMix(width), *_both_halves(width, net)]
        if level < levels - 1:
            layers.append(FactorOut())
            width -= factored_channels(width)
    return FlowSequential(layers, (features,))


def _both_halves(channels: int, net) -> list[AffineCoupling]:
    """Two couplings: the first half given the second, then the second given the new first."""
    halves = [Split.halves(active="first"), Split.halves(active="second")]
    return [
        AffineCoupling(net(split.passive_channels(channels), 2 * split.active_channels(channels)), split, HALVES_MAP)
        for split in halves
    ]

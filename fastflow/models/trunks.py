"""The flows that every model is built from: trunks of images and vectors, and the conditional flow of a class head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
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
    Permutation,
    ResidualMLP,
    Split,
    Squeeze,
    WeightNormResNet,
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
                 dropout: float = 0.0, alpha: float | None = 0.05, reversible: bool = False) -> FlowSequential:
    """A multi-scale flow of vectors, or flattened images too small for convolutions, with `ResidualMLP`s.

    Logit, flatten, then at each scale `steps` times (norm, mix, coupling of both halves), factor out; the last scale
    does not factor out, and is z_f. z [B, D] = [z_aux | z_f]. Without steps a head on one scale makes all of the flow.

    image  (C, H, W), or (D,)
    alpha  of the logit; None: no logit, for continuous data
    """
    features = math.prod(image)
    layers: list[nn.Module] = [*([] if alpha is None else [Logit(alpha)]), Flatten(tuple(image))]

    def net(inputs: int, outputs: int) -> ResidualMLP:
        return ResidualMLP(inputs, outputs, hidden, blocks, dropout)

    for scale in range(scales):
        for _ in range(steps):
            layers += [ActNorm(features), ChannelMix(features), *_both_halves(features, net)]
        if scale < scales - 1:
            layers.append(FactorOut())
            features -= factored_channels(features)
    return FlowSequential(layers, image, reversible=reversible)


def real_nvp_trunk(image: Sequence[int], *, scales: int = 2, hidden: int = 64, blocks: int = 8, doubling: bool = True,
                   alpha: float = 0.1, reversible: bool = False) -> FlowSequential:
    """The multi-scale RealNVP of FlowGMM: [B, *image] to [B, D].

    image       (C, H, W); H and W divisible by 2^(scales - 1)
    scales      at each scale three checkerboard couplings, squeeze, three channel couplings, the first half of the
                channels goes on; the last scale has a fourth checkerboard coupling instead of all that follows
    hidden, blocks   of the `WeightNormResNet`s
    doubling    channel couplings have twice the width, and so has the next scale
    alpha       of the logit that comes first
    reversible  trains in memory that does not grow with depth; see `FlowSequential`

    The defaults on (3, 32, 32) are the published `RealNVP` of 19,631,640 parameters; scales=3, blocks=4, doubling=False
    on (1, 28, 28) `RealNVPMNIST` of 5,144,664. Those counts hold a direction for each learned gain, as weight norm
    gives one to a vector; a number's direction is its sign, which no training moves, and is left out here.
    Source: Izmailov et al. 2020 (FlowGMM, arXiv 1912.13025); couplings of Dinh et al. 2017.
    """
    channels, height, width = image
    layers: list[nn.Module] = [Logit(alpha)]

    def coupling(split: Split) -> AffineCoupling:
        masked = split.passive_mask is not None
        wide = hidden if masked or not doubling else 2 * hidden
        active = split.active_channels(channels)
        net = WeightNormResNet(split.passive_channels(channels), 2 * active, wide, blocks, doubled=masked)
        return AffineCoupling(net, split, _tanh_map(active))

    for scale in range(scales):
        last = scale == scales - 1
        boards = [Split.checkerboard((channels, height, width), step % 2) for step in range(4 if last else 3)]
        layers += map(coupling, boards)
        if not last:
            layers.append(Squeeze("channel"))
            channels, height, width = 4 * channels, height // 2, width // 2
            layers += map(coupling, map(Split.halves, ("first", "second", "first")))
            channels //= 2
            swapped = [*range(channels, 2 * channels), *range(channels)]  # FactorOut lets the first half leave
            layers += [Permutation(swapped), FactorOut()]
            hidden *= 2 if doubling else 1
    return FlowSequential(layers, image, reversible=reversible)


def tabular_trunk(features: int, *, couplings: int = 10, hidden: int = 256, layers: int = 1, dropout: float = 0.5,
                  reversible: bool = False) -> FlowSequential:
    """FlowGMM's flow of vectors [B, features], at least 2 of them: couplings that transform one half after the other.

    Each conditioner reads all features, the active ones as zeros, and is a multilayer perceptron of `layers` + 1 hidden
    layers, with dropout after the first. The first coupling keeps the first floor(D / 2) features.

    The defaults on 50 features are the published net of UCI data, 1,046,480 parameters; couplings=7, hidden=1024 on 768
    that of text embeddings, 23,890,944; couplings=5, hidden=512, dropout=0 on 2 that of toy data. As in
    `real_nvp_trunk`, those counts hold a direction for each gain. Source: Izmailov et al. 2020 (FlowGMM).
    """
    if features < 2:
        raise ValueError(f"tabular_trunk: features is {features}, expected at least 2, one for each half")
    first = torch.arange(features) < features // 2

    def net() -> nn.Sequential:
        inner = [part for _ in range(layers) for part in (nn.Linear(hidden, hidden), nn.ReLU())]
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout), *inner,
                             nn.Linear(hidden, 2 * features))

    steps = [AffineCoupling(net(), Split.mask(~first if step % 2 else first), _tanh_map(features))
             for step in range(couplings)]
    return FlowSequential(steps, (features,), reversible=reversible)


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


def _tanh_map(channels: int) -> ScaleMap:
    """z = (x + t) exp(gain tanh s), a learned gain a channel, 1 at first: FlowGMM's form."""
    return ScaleMap("tanh", gain=torch.ones(channels), shift_first=True)

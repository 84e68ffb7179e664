"""The networks that make scale and shift for a coupling, all residual.

SCNF's are zero at the output, so that training starts calm; RealNVP's are normalised instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fastflow.nn.act_norm import ActNorm


class ConvResidualNet(nn.Module):
    """A residual network of 3x3 convolutions: [B, in_channels, H, W] to [B, out_channels, H, W], H and W at least 2.

    conv to `hidden`; `blocks` times x + conv(relu(conv(relu(x)))); ActNorm (its log-determinant has no part here);
    relu; conv to out_channels, which starts at zero. Padding reflects. dropout is applied before a block's second
    convolution. context [B, E], if the layer is conditional, has `context_features` = E and joins every pixel's input.
    Source: the trunk networks of Atanov et al. 2019 (SCNF, arXiv 1905.00505).
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int = 64, blocks: int = 4, dropout: float = 0.0,
                 context_features: int = 0) -> None:
        super().__init__()
        self.context_features = context_features
        self.input = _reflecting_conv(in_channels + context_features, hidden)
        self.blocks = nn.ModuleList(
            _ResidualBlock(_reflecting_conv(hidden, hidden), _reflecting_conv(hidden, hidden), dropout)
            for _ in range(blocks)
        )
        self.norm = ActNorm(hidden)
        self.output = _zeroed(_reflecting_conv(hidden, out_channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if min(x.shape[2:]) < 2:
            raise ValueError(f"ConvResidualNet: x has shape {tuple(x.shape)}, expected at least 2 x 2 pixels")
        return _residual_forward(self, x, context)


class ResidualMLP(nn.Module):
    """A residual network of linear layers: [B, in_features] to [B, out_features].

    linear to `hidden`; `blocks` times x + linear(relu(linear(relu(x)))); ActNorm; relu; linear to out_features, which
    starts at zero. dropout is applied before a block's second linear layer. context [B, E], if the layer is
    conditional, has `context_features` = E and is appended to the input.
    Source: the head networks of Atanov et al. 2019 (SCNF, arXiv 1905.00505), where they are 1x1 convolutions.
    """

    def __init__(self, in_features: int, out_features: int, hidden: int = 256, blocks: int = 4, dropout: float = 0.0,
                 context_features: int = 0) -> None:
        super().__init__()
        self.context_features = context_features
        self.input = nn.Linear(in_features + context_features, hidden)
        self.blocks = nn.ModuleList(
            _ResidualBlock(nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), dropout) for _ in range(blocks)
        )
        self.norm = ActNorm(hidden)
        self.output = _zeroed(nn.Linear(hidden, out_features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return _residual_forward(self, x, context)


class WeightNormResNet(nn.Module):
    """A residual network with weight and batch normalisation: [B, in_channels, H, W] to [B, out_channels, H, W].

    h = conv(relu([v, -v])) with v = norm(x), twice that if `doubled`; `blocks` times h + conv(relu(norm(conv(relu(norm(
    h)))))); out = conv1(relu(norm(sum of conv1(h) over the first h and those after each block))). conv is 3x3, conv1
    1x1, both weight-normed; padding is zero. A checkerboard, where half of the pixels that come are zero, is `doubled`.

    In training the statistics are the batch's, so a row's result depends on the other rows; in evaluation it does not.
    Source: Dinh et al. 2017, "Density estimation using Real NVP", appendix; sizes of Izmailov et al. 2020 (FlowGMM,
    arXiv 1912.13025).
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int = 64, blocks: int = 8, doubled: bool = False,
                 ) -> None:
        super().__init__()
        self.doubled = doubled
        self.in_norm = nn.BatchNorm2d(in_channels)
        self.input = weight_norm(nn.Conv2d(2 * in_channels, hidden, 3, padding=1))
        self.blocks = nn.ModuleList(_NormedBlock(hidden) for _ in range(blocks))
        self.skips = nn.ModuleList(weight_norm(nn.Conv2d(hidden, hidden, 1)) for _ in range(blocks + 1))
        self.out_norm = nn.BatchNorm2d(hidden)
        self.output = weight_norm(nn.Conv2d(hidden, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_norm(x)
        if self.doubled:
            x = 2 * x
        h = self.input(torch.relu(torch.cat([x, -x], dim=1)))
        total = self.skips[0](h)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            h = block(h)
            total = total + skip(h)
        return self.output(torch.relu(self.out_norm(total)))


class _NormedBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.BatchNorm2d(hidden), nn.BatchNorm2d(hidden)
        self.first = weight_norm(nn.Conv2d(hidden, hidden, 3, padding=1, bias=False))
        self.second = weight_norm(nn.Conv2d(hidden, hidden, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(torch.relu(self.first_norm(x)))
        return x + self.second(torch.relu(self.second_norm(h)))


class _ResidualBlock(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module, dropout: float) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.dropout(torch.relu(self.first(torch.relu(x)))))


def _residual_forward(net: ConvResidualNet | ResidualMLP, x: Tensor, context: Tensor | None) -> Tensor:
    came, expected = 0 if context is None else context.shape[1], net.context_features
    if came != expected:
        raise ValueError(f"{type(net).__name__}: context has {came} features, expected context_features = {expected}")
    if context is not None:
        pixels = context.view(*context.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
        x = torch.cat([x, pixels], dim=1)
    h = net.input(x)
    for block in net.blocks:
        h = block(h)
    h, _ = net.norm(h)
    return net.output(torch.relu(h))


def _reflecting_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect")


def _zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

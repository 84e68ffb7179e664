"""SCNF-GLOW as the public code computes it, in plain PyTorch: what `benchmarks/scnf_step.py` measures against.

Our own rewrite of the formulation of SamsungLabs/semi-supervised-NFs (the trunk `mnist-masked`, the head `cond-flow`,
both with `full` convolutions): tensor operation for tensor operation what that code dispatches, redundant ones and
reads by the host included, under its names in the state_dict, so that `SCNF.from_reference(model.state_dict())` is the
same model. Nothing here uses fastflow, so that a mistake in a layer cannot hide in both. Two things differ: log|det| of
a float64 weight stays float64, and norms that have not started from data are refused.

Kernels, counted by `benchmarks/scnf_kernels.py` as it says there: 1279 forward and 1328 backward in the trunk, 691 and
739 in one pass of the head (torch 2.13); the counts known of the public code are 1279, 1317, 692 and 735.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal


class ActNorm(nn.Module):
    def __init__(self, channels: int, in_flow: bool = True) -> None:
        super().__init__()
        self.logs, self.bias = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.requires_init = nn.Parameter(torch.zeros(1, dtype=torch.uint8), requires_grad=False)
        self.in_flow = in_flow

    def forward(self, x: Tensor, log_det: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        if self.requires_init:  # a read by the host at every call
            raise ValueError("ActNorm: requires_init is set, expected weights of norms that have started")
        x = (x - self.bias.view(1, -1, 1, 1)) * self.logs.view(1, -1, 1, 1).exp()
        if self.in_flow:
            log_det += self.logs.sum() * (x.shape[2] * x.shape[3])
        return x


class ChannelMix(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.eye(channels))

    def forward(self, x: Tensor, log_det: Tensor, context: Tensor | None) -> Tensor:
        log_det += torch.linalg.slogdet(self.W.double()).logabsdet.to(self.W.dtype) * (x.shape[2] * x.shape[3])
        return F.conv2d(x, self.W[..., None, None])


class MaskedCoupling(nn.Module):
    def __init__(self, channels: int, size: int, parity: int, net: nn.Module) -> None:
        super().__init__()
        i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        board = ((i + j + parity) % 2).float().repeat(1, channels, 1, 1)
        self.mask = nn.Parameter(board, requires_grad=False)
        self.net = net

    def forward(self, x: Tensor, log_det: Tensor, context: Tensor | None) -> Tensor:
        passive = self.mask * x
        scale, shift = self.net(passive).split(x.shape[1], dim=1)
        log_scale = -F.softplus(-scale - 2)
        log_scale *= 1 - self.mask
        scale = (1 - self.mask) * torch.sigmoid(scale + 2)
        scale += self.mask
        shift = (1 - self.mask) * shift
        log_det += log_scale.sum((1, 2, 3))
        return passive + (1 - self.mask) * (x * scale + shift)


class Coupling(nn.Module):
    def __init__(self, make_net: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net1, self.net2 = make_net(), make_net()

    def forward(self, x: Tensor, log_det: Tensor, context: Tensor | None) -> Tensor:
        first, second = (half.contiguous() for half in x.split(x.shape[1] // 2, dim=1))
        if context is not None:
            context = context[..., None, None].repeat(1, 1, *x.shape[2:])
        first = _half(first, second, context, self.net1, log_det)
        second = _half(second, first, context, self.net2, log_det)
        return torch.cat([first, second], dim=1)


def _half(active: Tensor, passive: Tensor, context: Tensor | None, net: nn.Module, log_det: Tensor) -> Tensor:
    given = passive if context is None else torch.cat([passive, context], dim=1)
    scale, shift = net(given).split(active.shape[1], dim=1)
    scale = torch.sigmoid(scale + 2) + 1e-6
    log_det += scale.log().sum((1, 2, 3))
    return (active + shift) * scale


class Logits(nn.Module):
    def forward(self, x: Tensor, log_det: Tensor, context: Tensor | None) -> Tensor:
        p = x * 0.95 + 0.025
        log_det += (-p.log() - (1 - p).log() + math.log(0.95)).sum((1, 2, 3))
        return p.log() - (1 - p).log()


class Squeeze(nn.Module):
    """[B, C, H, W] to [B, 4 C, H / 2, W / 2], channel (2 dy + dx) C + c; one copy for each column of the output."""

    def forward(self, x: Tensor, log_det: Tensor, context: Tensor | None) -> Tensor:
        pairs = x.permute(0, 2, 3, 1).split(2, dim=2)
        columns = [pair.contiguous().view(x.shape[0], x.shape[2] // 2, 4 * x.shape[1]) for pair in pairs]
        return torch.stack(columns, dim=1).permute(0, 3, 2, 1)


class FactorOut(nn.Module):
    """A mark: `Flow` takes the first half of the channels, rounded up to even, out here."""


class Flow(nn.Module):
    """(log_det [B], z [B, D]), z what was factored out and then what was left."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.modules_ = nn.ModuleList(layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = len(x)
        log_det, z = torch.zeros(rows, dtype=next(self.parameters()).dtype, device=x.device), None
        for layer in self.modules_:
            if isinstance(layer, FactorOut):
                leaving = x.shape[1] // 2 + x.shape[1] // 2 % 2
                piece, x = x[:, :leaving].reshape(rows, -1), x[:, leaving:]
                z = piece if z is None else torch.cat([z, piece], dim=1)
            else:
                x = layer(x, log_det, context)
        return log_det, torch.cat([z, x.reshape(rows, -1)], dim=1)


class ConditionalFlow(Flow):
    """The same of z [B, D] and labels [B]."""

    def __init__(self, layers: list[nn.Module], classes: int, context_features: int) -> None:
        super().__init__(layers)
        self.embeddings = nn.Embedding.from_pretrained(torch.eye(classes, context_features), freeze=False)

    def forward(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(z[..., None, None], self.embeddings(labels))


class Gaussian(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.logsigma = nn.Parameter(torch.zeros(features))
        self.mean = nn.Parameter(torch.zeros(features), requires_grad=False)

    def log_prob(self, z: Tensor) -> Tensor:
        return Normal(self.mean, F.softplus(self.logsigma)).log_prob(z).sum(1)


class Head(nn.Module):
    """p(z, y) of all of the trunk's latents, the tail of which the flow describes; probabilities [K] are p(y)."""

    def __init__(self, flow: ConditionalFlow, features: int, aux_features: int, probabilities: Tensor) -> None:
        super().__init__()
        self.flow, self.features = flow, features
        self.deep_prior, self.shallow_prior = Gaussian(features), Gaussian(aux_features)
        self.classes = Categorical(probs=probabilities)

    def log_prob(self, z: Tensor, labels: Tensor) -> Tensor:
        """[B] log p(z | y): one pass of the head."""
        log_det, z_h = self.flow(z[:, -self.features:], labels)
        return log_det + self.deep_prior.log_prob(z_h) + self.shallow_prior.log_prob(z[:, :-self.features])

    def log_joint(self, z: Tensor) -> Tensor:
        """[B, K] log p(z, y): one pass over K copies of all latents."""
        support = self.classes.enumerate_support()
        count, rows = len(support), len(z)
        log_prob = self.log_prob(z.repeat(count, 1), support.repeat(rows, 1).t().reshape(-1))
        return log_prob.view(count, rows).t() + self.classes.log_prob(support[None])


class SCNFReference(nn.Module):
    """The model on square images of one channel, in [0, 1]; by default that of MNIST.

    size                       of an image
    hidden, head_hidden        widths of the conditioners, of four blocks each
    levels, steps              of the head
    classes, context_features  K and the width of its embedding
    probabilities              [K] p(y), uniform if None; on the device that the model is to run on
    """

    def __init__(self, size: int = 28, *, hidden: int = 64, head_hidden: int = 256, levels: int = 2, steps: int = 4,
                 classes: int = 10, context_features: int = 10, probabilities: Tensor | None = None) -> None:
        super().__init__()
        features = 4 * (size // 4) ** 2
        probabilities = torch.full((classes,), 1 / classes) if probabilities is None else probabilities
        self.flow = Flow(_trunk_layers(size, hidden))
        head = ConditionalFlow(_head_layers(features, levels, steps, head_hidden, context_features), classes,
                               context_features)
        self.prior = Head(head, features, size**2 - features, probabilities)

    def log_joint(self, x: Tensor) -> Tensor:
        """[B, K] log p(x, y)."""
        log_det, z = self.flow(x)
        return log_det[:, None] + self.prior.log_joint(z)


def _trunk_layers(size: int, hidden: int) -> list[nn.Module]:
    layers: list[nn.Module] = [Logits()]
    channels = 1
    for scale in range(3):
        for parity in (0, 1, 0):
            masked = MaskedCoupling(channels, size, parity, _residual_net(channels, hidden, 2 * channels, 3))
            layers += [ChannelMix(channels), masked, ActNorm(channels)]
        if scale < 2:
            layers.append(Squeeze())
            channels, size = 4 * channels, size // 2
        for _ in range(2):
            coupling = Coupling(lambda width=channels: _residual_net(width // 2, hidden, width, 3))
            layers += [ChannelMix(channels), coupling, ActNorm(channels)]
        if scale < 2:
            layers.append(FactorOut())
            channels //= 2
    return layers


def _head_layers(features: int, levels: int, steps: int, hidden: int, context_features: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for level in range(levels):
        for _ in range(steps):
            coupling = Coupling(
                lambda width=features: _residual_net(width // 2 + context_features, hidden, width, 1))
            layers += [ActNorm(features), ChannelMix(features), coupling]
        if level < levels - 1:
            layers.append(FactorOut())
            features -= features // 2 + features // 2 % 2
    return layers


class _Block(nn.Module):
    def __init__(self, hidden: int, kernel: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(each for _ in range(2) for each in (nn.ReLU(), *_conv(hidden, hidden, kernel))))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x


def _residual_net(inputs: int, hidden: int, outputs: int, kernel: int) -> nn.Sequential:
    net = nn.Sequential(*_conv(inputs, hidden, kernel), *(_Block(hidden, kernel) for _ in range(4)),
                        ActNorm(hidden, in_flow=False), nn.ReLU(), *_conv(hidden, outputs, kernel))
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    return net


def _conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(1)] * (kernel == 3) + [nn.Conv2d(inputs, outputs, kernel)]

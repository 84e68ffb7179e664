"""The flows of TzK: its steps, the trunk, and conditional densities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastflow.nn import Bijection, ChannelMix, ElementwiseAffine, FlowSequential, Logit, Squeeze, SymLog

LOG_VARIANCE = 7.0  # the conditional Gaussians' log-variances are clamped to +- this
_GAIN = 0.1  # of the regressors of means and log-variances, all of which one step of Adam moves the same way


def flow_steps(shape: tuple[int, ...], steps: int, tile: int, std: float = 0.1, from_data: bool = False,
               ) -> list[Bijection]:
    """TzK's flow steps on samples of `shape`: a tiled linear map, one scale and shift an element, SymLog.

    shape      (C, H, W): each step mixes tiles of r x r pixels, r = sqrt(tile), in turn neighbours and pixels H / r and
               W / r apart, by one matrix [C tile, C tile] for all tiles; (D,): one matrix [D, D], `tile` has no meaning
    tile       16 or 256 in TzK; any square whose root divides H and W. All pixels come to depend on each other if tile
               is at least H and W; on 32 x 32 pixels a tile of 16 leaves four groups of pixels independent, see
               `ops.squeeze`
    std        of what enters the first SymLog, if x is standard normal, or for any x with from_data
    from_data  whether `initialize` is to start the first and the last scale and shift from data

    The matrices start as random rotations, and the SymLogs nearly linear, as std is small; the last layer, one scale
    and shift more, brings it back to 1. Else the stack fits no data at first, and its inverse, exponentials of
    exponentials, leaves the range of float32.
    """
    side = math.isqrt(tile)
    if side * side != tile or side < 2:
        raise ValueError(f"TzK: tile is {tile}, expected a square of at least 4, like 16 or 256")
    image, layers = len(shape) == 3, []
    channels = shape[0] * (tile if image else 1)
    affines = [ElementwiseAffine(shape, std=std), *(ElementwiseAffine(shape) for _ in range(steps))]
    for step, affine in enumerate(affines[:-1]):
        square = torch.randn(channels, channels, dtype=torch.float64)
        mix = ChannelMix(channels, "plu", torch.linalg.qr(square).Q.to(torch.get_default_dtype()))
        if image:
            squeeze, undo = (Squeeze(factor=side, interleaved=step % 2 == 1, undo=undo) for undo in (False, True))
            layers += [squeeze, mix, undo]
        else:
            layers.append(mix)
        layers += [affine, SymLog()]
    nn.init.constant_(affines[0].log_scale, math.log(std))
    nn.init.constant_(affines[-1].log_scale, -math.log(_shrunk(std, steps)))
    for affine in affines[1:-1] if from_data else affines:
        affine.initialized.fill_(True)
    return [*layers, affines[-1]]


def _shrunk(std: float, steps: int) -> float:
    """The standard deviation of a normal variable after some SymLogs, which it enters with `std`."""
    x = std * torch.special.ndtri(torch.arange(0.5, 1000, dtype=torch.float64) / 1000)
    for _ in range(steps):
        x = x.sign() * x.abs().log1p()
    return x.std().item()


def tzk_trunk(image: Sequence[int], *, steps: int = 10, tile: int = 16, alpha: float | None = 0.05,
              reversible: bool = False) -> FlowSequential:
    """TzK's trunk, [B, *image] to the same shape: `steps` flow steps on one level, as `flow_steps` has them.

    image       (C, H, W), or (D,) of continuous vectors
    alpha       of the logit that comes first, as in RealNVP, and keeps T in [0, 1]; None: no logit, T in R^D
    reversible  trains in memory that does not grow with depth; see `FlowSequential`

    32 x 32 with 10 steps and a tile of 16 has 27,808 parameters. Source: Livne and Fleet 2018, arXiv 1811.01837.
    """
    image = tuple(image)
    first = [] if alpha is None else [Logit(alpha)]
    layers = flow_steps(image, steps, tile, std=0.3, from_data=True)
    return FlowSequential([*first, *layers], image, reversible=reversible)


def regressor(inputs: int, outputs: int, hidden: int = 70) -> nn.Sequential:
    """4 linear layers with PReLU between them, the last one zero at the start: [*, inputs] to [*, outputs]."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.PReLU(), nn.Linear(hidden, hidden), nn.PReLU(),
                         nn.Linear(hidden, hidden), nn.PReLU(), last)


class ConditionalDensity(nn.Module):
    """p(x | context): a Gaussian whose means and log-variances a regressor makes of the context, through a flow.

    flow      samples [*shape] to the Gaussian's latents
    contexts  E, the width of a context

    Leading dimensions of x [*draws, B, *shape] and context [*draws, B, E] broadcast; the flow sees x, and the regressor
    the context, once.
    """

    def __init__(self, flow: Bijection, shape: tuple[int, ...], contexts: int, hidden: int) -> None:
        super().__init__()
        self.flow, self.shape, self.features = flow, shape, math.prod(shape)
        self.regressor = regressor(contexts, 2 * self.features, hidden)

    @torch.no_grad()
    def start_as(self, scale: Tensor) -> None:
        """The Gaussian of an untrained regressor becomes N(0, scale^2), scale [D], whatever the context."""
        self.regressor[-1].bias[self.features:] = 2 * scale.log() / _GAIN

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """[*draws, B] log p(x | context), nats."""
        leading = x.shape[: x.dim() - len(self.shape)]
        z, log_det = self.flow(x.reshape(-1, *self.shape))
        mean, log_variance = self._moments(context, z)
        squares = (z.view(*leading, self.features) - mean).square() * torch.exp(-log_variance)
        energy = 0.5 * (squares + log_variance + math.log(2 * math.pi))
        return log_det.view(leading) - energy.sum(-1)

    def draw(self, context: Tensor, noise: Tensor) -> Tensor:
        """[*draws, B, *shape] samples made of standard normal `noise` [*draws, B, prod(shape)], differentiably."""
        mean, log_variance = self._moments(context, noise)
        z = mean + torch.exp(0.5 * log_variance) * noise
        x, _ = self.flow.inverse(z.reshape(-1, *self.shape))
        return x.view(*z.shape[:-1], *self.shape)

    def _moments(self, context: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = (_GAIN * self.regressor(context)).to(like.dtype).chunk(2, dim=-1)
        return mean, log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)


class Inverted(Bijection):
    """A flow the other way round."""

    def __init__(self, flow: Bijection) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(x, context, log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow(z, context, log_det)

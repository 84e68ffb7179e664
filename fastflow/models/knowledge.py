"""A knowledge type of TzK: whether an attribute is present, in which style, and what that says about the data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.models.tzk_flows import ConditionalDensity, Inverted, flow_steps, regressor
from fastflow.nn import FlowSequential
from fastflow.ops._checks import bad_shape, check_labels

_PRIOR_POINTS = 4096  # quasi-random points of p(C) that p(kappa = 1) is the mean over
_CANDIDATES = 256  # draws of p(C) of which one becomes a draw of p(C | kappa = 1)


class Latent(NamedTuple):
    """Data T as the trunk has it: z [B, *shape], log|det dZ/dT| [B] and log p(T) [B], nats."""

    z: Tensor
    log_det: Tensor
    log_prob: Tensor


class Factors(NamedTuple):
    """The log-factors of T and K = (kappa, C), nats, of equal or broadcasting shapes [*draws, B]."""

    kappa_given_data: Tensor
    style_given_data: Tensor
    data_given_knowledge: Tensor
    kappa_given_style: Tensor
    style: Tensor

    @property
    def encoder(self) -> Tensor:
        """log p(K | T)."""
        return self.kappa_given_data + self.style_given_data

    @property
    def decoder(self) -> Tensor:
        """log p(T | K) + log p(K)."""
        return self.data_given_knowledge + self.kappa_given_style + self.style


class Knowledge(nn.Module):
    """The factors of one knowledge type K = (kappa in {0, 1}, C in R^c) for data T with latents Z.

        p(kappa = 1 | T) = sigmoid(MLP(Z))            p(C | T, kappa = 1)  conditional Gaussian, 4 flow steps
        p(kappa = 1 | C) = sigmoid(MLP(C))            p(Z | kappa = 1, C)  conditional Gaussian, 4 flow steps
        p(C | T, kappa = 0) = p(C) = N(0, I_c)        p(T | kappa = 0, C) = p(T)

    shape            of Z, (C, H, W) or (D,)
    style            c, the width of C
    hidden           units of the regressors
    steps, tile      of the two conditional flows, see `flow_steps`
    penalty          lambda of the type in `TzK.terms`, at least 0: from 1/2 on p(T | K) stays at p(T) p(K | T) / p(K);
                     below 1/2 - 1/m, where m types can be present at once, the loss has no minimum
    positive_weight  of the discriminators at kappa = 1, against 1 at kappa = 0: balances a rare attribute

    Each step of training draws C and scores Z; so SymLog compresses draws of C, and scored Z: neither can overflow.
    """

    def __init__(self, shape: tuple[int, ...], style: int = 2, hidden: int = 70, steps: int = 4, tile: int = 16,
                 penalty: float = 0.25, positive_weight: float = 1.0) -> None:
        super().__init__()
        if style < 1:
            raise ValueError(f"Knowledge: style is {style}, expected at least 1")
        if penalty < 0 or positive_weight <= 0:
            raise ValueError(f"Knowledge: penalty is {penalty} and positive_weight {positive_weight}, expected numbers "
                             "of at least 0 and above 0")
        features = math.prod(shape)
        self.style, self.penalty, self.positive_weight = style, penalty, positive_weight
        self.kappa_given_data = regressor(features, 1, hidden)
        self.kappa_given_style = regressor(style, 1, hidden)
        style_flow, data_flow = (FlowSequential(flow_steps(each, steps, tile), each) for each in ((style,), shape))
        self.style_given_data = ConditionalDensity(Inverted(style_flow), (style,), features, hidden)
        self.data_given_style = ConditionalDensity(data_flow, shape, style, hidden)

    def log_odds(self, z: Tensor, frozen: bool = False) -> Tensor:
        """[B] log p(kappa = 1 | T) - log p(kappa = 0 | T)."""
        return _log_odds(self.kappa_given_data, z.flatten(1), frozen)

    def factors(self, data: Latent, style: Tensor, present: bool, frozen: bool = False) -> Factors:
        """The log-factors of data and C = style [*draws, B, c] for one value of kappa.

        frozen  the discriminators p(kappa | T) and p(kappa | C) pass gradients on, but get none
        """
        sign = 1.0 if present else -1.0
        prior = _standard_normal(style)
        kappa_given_data = F.logsigmoid(sign * self.log_odds(data.z, frozen))
        kappa_given_style = F.logsigmoid(sign * _log_odds(self.kappa_given_style, style, frozen))
        if not present:
            return Factors(kappa_given_data, prior, data.log_prob, kappa_given_style, prior)
        style_given_data = self.style_given_data.log_prob(style, data.z.flatten(1))
        data_given_style = self.data_given_style.log_prob(data.z, style) + data.log_det
        return Factors(kappa_given_data, style_given_data, data_given_style, kappa_given_style, prior)

    def style_log_odds(self, style: Tensor) -> Tensor:
        """[*draws, B] log p(kappa = 1 | C) - log p(kappa = 0 | C)."""
        return _log_odds(self.kappa_given_style, style)

    def compound(self, data: Latent, style: Tensor, present: bool, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """What the type adds to log M, and its penalty, for one value of kappa, each [B]. Arguments as in `factors`.

        kappa = 0 has no penalty: no density is left in its ratio p(kappa = 0 | T) / p(kappa = 0 | C), which is 1 only
        where the discriminators tell nothing apart.
        """
        factors = self.factors(data, style, present, frozen)
        log_mean = 0.5 * (factors.encoder + factors.decoder - data.log_prob)
        if not present:
            return log_mean, torch.zeros_like(log_mean)
        more = 0.5 * (self.positive_weight - 1) * (factors.kappa_given_data + factors.kappa_given_style)
        return log_mean + more, self.penalty * (factors.encoder + data.log_prob - factors.decoder).abs()

    def weights(self, kappa: Tensor | None, log_odds: Tensor) -> list[tuple[bool, Tensor]]:
        """(kappa, its weight [B]) for both values: 1 where observed, else its probability by log_odds [B], detached.

        kappa  integers [B], -1 unknown; None: all of them
        """
        probability = torch.sigmoid(log_odds.detach())
        if kappa is None:
            return [(True, probability), (False, 1 - probability)]
        check_labels("TzK", "kappa", kappa, len(log_odds), 2, unlabelled=True)
        present = torch.where(kappa < 0, probability, (kappa == 1) * 1.0)
        absent = torch.where(kappa < 0, 1 - probability, (kappa == 0) * 1.0)
        return [(True, present), (False, absent)]

    def check_style(self, op: str, name: str, value: Tensor, rows: int) -> None:
        """Raises ValueError unless the value is [rows, c]."""
        if value.shape != (rows, self.style):
            raise bad_shape(op, name, value, (rows, self.style), "of the type")

    def draw_style(self, z: Tensor, noise: Tensor) -> Tensor:
        """[*draws, B, c] draws of p(C | T, kappa = 1), made of standard normal noise of that shape."""
        return self.style_given_data.draw(z.flatten(1), noise)

    def log_joint(self, data: Latent, noise: Tensor) -> Tensor:
        """[B] log p(T, kappa = 1), C integrated out by importance sampling.

        noise  standard normal [S, B, c], one draw of C each: half of them of p(C | T, kappa = 1), which training makes
               narrower than the posterior, and the others of p(C), which covers what that leaves out
        """
        draws = len(noise)
        own = (draws + 1) // 2
        factors = self.factors(data, torch.cat([self.draw_style(data.z, noise[:own]), noise[own:]]), present=True)
        within = factors.style_given_data.isfinite()  # a C of p(C) may be beyond what float32 inverts: p(C | T) is 0
        proposal = torch.where(within, factors.style_given_data, -torch.inf) + math.log(own / draws)
        if own < draws:
            proposal = torch.logaddexp(proposal, factors.style + math.log(1 - own / draws))
        return torch.logsumexp(factors.decoder - proposal, 0) - math.log(draws)

    def log_present(self) -> Tensor:
        """log p(kappa = 1), 0-d: the mean of p(kappa = 1 | C) over 4096 quasi-random points of p(C)."""
        engine = torch.quasirandom.SobolEngine(self.style, scramble=True, seed=0)
        uniform = engine.draw(_PRIOR_POINTS, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        style = torch.special.ndtri(uniform).to(next(self.parameters()))
        return F.logsigmoid(self.style_log_odds(style)).logsumexp(0) - math.log(_PRIOR_POINTS)

    def sample_style(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """[rows, c] draws of p(C | kappa = 1): each is one of 256 of p(C), chosen in proportion to p(kappa = 1 | C)."""
        parameter = next(self.parameters())
        options = {"generator": generator, "dtype": parameter.dtype, "device": parameter.device}
        style = torch.randn(rows, _CANDIDATES, self.style, **options)
        if rows == 0:
            return style[:, 0]
        chosen = torch.multinomial(torch.sigmoid(self.style_log_odds(style)), 1, generator=generator)
        return style[torch.arange(rows, device=style.device), chosen[:, 0]]


def filled(style: Tensor | None, drawn: Tensor) -> Tensor:
    """C where it is known, and `drawn` where it is NaN; None: nowhere known."""
    return drawn if style is None else torch.where(style.isnan(), drawn, style.to(drawn))


def _log_odds(network: nn.Module, x: Tensor, frozen: bool = False) -> Tensor:
    if frozen:
        values = {name: parameter.detach() for name, parameter in network.named_parameters()}
        return torch.func.functional_call(network, values, x).squeeze(-1)
    return network(x).squeeze(-1)


def _standard_normal(x: Tensor) -> Tensor:
    return -0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)

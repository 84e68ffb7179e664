"""The networks of variational autoencoders: softplus MLPs whose outputs are the parameters of a density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.ops._checks import compute_dtype, is_readable


class SoftplusMLP(nn.Module):
    """Linear layers with softplus in between; the class, if any, enters the first: softplus(W_x x + W_y y + b).

    in_features, out_features   sizes of input and output
    hidden                      widths of the hidden layers, at least one
    classes                     K, 0 for a network without classes

    Input [..., in_features] and labels [...] to output [..., out_features]. Without labels a network of classes answers
    for all of them: [..., K or 1, in_features] to [..., K, out_features], where of one input for all classes W_x x is
    computed once. Source: Kingma et al. 2014 (arXiv 1406.5298); the formulas are those of the authors' code.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int, classes: int = 0) -> None:
        super().__init__()
        if not hidden:
            raise ValueError(f"{type(self).__name__}: hidden is {list(hidden)}, expected at least one width")
        self.input = nn.Linear(in_features, hidden[0])
        self.of_class = nn.Linear(classes, hidden[0], bias=False) if classes else None
        self.layers = nn.ModuleList(nn.Linear(*widths) for widths in pairwise(hidden))
        self.output = nn.Linear(hidden[-1], out_features)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.input(x)
        if self.of_class is not None:
            table = self.of_class.weight.mT
            h = h + (table if labels is None else F.embedding(labels.long(), table))
        h = F.softplus(h)
        for layer in self.layers:
            h = F.softplus(layer(h))
        return self.output(h)

    @torch.no_grad()
    def initialize(self, std: float | None) -> None:
        """Draws all weights anew: N(0, std^2) and biases 0 as in the paper, which has std 0.001; None, as in the
        authors' code: N(0, 1 / fan-in), hidden biases N(0, 0.01^2), output biases 0."""
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5 if std is None else std)
            if linear.bias is not None:
                hidden = std is None and linear is not self.output
                nn.init.normal_(linear.bias, std=0.01) if hidden else nn.init.zeros_(linear.bias)


class BernoulliMLP(SoftplusMLP):
    """Independent Bernoulli variables whose logits are the output; arguments as for `SoftplusMLP`."""

    def log_prob(self, value: Tensor, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """[...] nats: log p(value | x) of value [..., out_features] in [0, 1]. Where value is a probability, this is
        the expectation over a binary value that is drawn from it."""
        _check_probabilities(value)
        logits = self(x, labels)
        logits = logits.to(compute_dtype(logits))
        logits, value = torch.broadcast_tensors(logits, value.to(logits.dtype))
        return -F.binary_cross_entropy_with_logits(logits, value, reduction="none").sum(-1)

    def mean(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """[..., out_features] probabilities."""
        return torch.sigmoid(self(x, labels))


class GaussianMLP(SoftplusMLP):
    """A diagonal Gaussian whose mean and log-variance are the output; arguments as for `SoftplusMLP`."""

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int, classes: int = 0) -> None:
        super().__init__(in_features, hidden, 2 * out_features, classes)

    def parameters_of(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(mean, log-variance), each [..., out_features], float32 at least."""
        out = self(x, labels)
        return out.to(compute_dtype(out)).chunk(2, dim=-1)

    def log_prob(self, value: Tensor, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """[...] nats: log p(value | x) of value [..., out_features]."""
        return normal_log_prob(value, *self.parameters_of(x, labels))

    def mean(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """[..., out_features] means."""
        return self.parameters_of(x, labels)[0]

    def initialize(self, std: float | None) -> None:
        super().initialize(std)
        if std is None:  # the authors' code starts from unit variances
            with torch.no_grad():
                self.output.weight.chunk(2)[1].zero_()


def density_mlp(likelihood: str) -> type[BernoulliMLP | GaussianMLP]:
    """The network of that name, "bernoulli" or "gaussian"; raises ValueError for another."""
    networks = {"bernoulli": BernoulliMLP, "gaussian": GaussianMLP}
    if likelihood not in networks:
        raise ValueError(f"density_mlp: likelihood is {likelihood!r}, expected one of {', '.join(networks)}")
    return networks[likelihood]


def _check_probabilities(value: Tensor) -> None:
    """Raises, where looking costs nothing, for what is no Bernoulli variable: its log-probability would be finite."""
    if is_readable(value) and value.numel() and not (value.min() >= 0 and value.max() <= 1):
        raise ValueError(f"BernoulliMLP: value lies in [{value.min().item():g}, {value.max().item():g}], expected "
                         "[0, 1]; see ops.binarize for grey levels, likelihood 'gaussian' for other data")


def normal_log_prob(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """[...] nats: log N(value; mean, diag exp(log_variance)), the last dim summed."""
    squares = ((value - mean) * torch.exp(-0.5 * log_variance)).square()
    return -0.5 * (squares + log_variance + math.log(2 * math.pi)).sum(-1)


def standard_normal_log_prob(value: Tensor) -> Tensor:
    """[...] nats: log N(value; 0, I), the last dim summed."""
    return -0.5 * (value.square() + math.log(2 * math.pi)).sum(-1)


def standard_normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """[...] nats: KL(N(mean, diag exp(log_variance)) || N(0, I)), the last dim summed."""
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance).sum(-1)


def reparameterized(mean: Tensor, log_variance: Tensor, noise: Tensor | None) -> Tensor:
    """mean + exp(log_variance / 2) noise, a draw where noise is standard normal; None: the mean."""
    return mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise.to(mean.dtype)


@torch.no_grad()
def importance_log_likelihood(decoder: BernoulliMLP | GaussianMLP, x: Tensor, mean: Tensor, log_variance: Tensor,
                              samples: int, generator: torch.Generator | None = None,
                              elements: int = 2**24) -> Tensor:
    """[...] nats: log (1/S) sum_s p(x | z_s) p(z_s) / q(z_s | x), z_s drawn from q = N(mean, diag exp(log_variance)).

    x         [..., D], of sizes that expand to mean's
    mean      [..., Z], as log_variance; for a decoder of classes [B, K, Z]
    samples   S, at least 1
    elements  of x, repeated for as many samples, that are in memory at once; whatever it is at least one sample is

    In expectation a lower bound on log p(x) that grows with S. Summed as logarithms: the ratios underflow.
    Source: Kingma et al. 2014 (arXiv 1406.5298), section 4.1; Burda et al. 2016 (arXiv 1509.00519), eq. 8.
    """
    if samples < 1:
        raise ValueError(f"importance_log_likelihood: samples is {samples}, expected at least 1")
    together = max(1, elements // max(1, mean[..., 0].numel() * x.shape[-1]))
    total = torch.full_like(mean[..., 0], -math.inf)
    for start in range(0, samples, together):
        shape = (min(together, samples - start), *mean.shape)
        noise = torch.randn(shape, generator=generator, dtype=mean.dtype, device=mean.device)
        z = reparameterized(mean, log_variance, noise)
        # log q(z | x) by the noise: z - mean cancels where the mean is large
        log_q = standard_normal_log_prob(noise) - 0.5 * log_variance.sum(-1)
        log_ratios = decoder.log_prob(x, z) + standard_normal_log_prob(z) - log_q
        total = torch.logaddexp(total, torch.logsumexp(log_ratios, dim=0))
    return total - math.log(samples)

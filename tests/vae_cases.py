"""Small models with latent variables whose truth is known: one latent, integrated out on a grid, in float64."""

import math

import numpy as np
import torch
from bijections import scatter
from torch import Tensor

from fastflow.models import M1, M2
from fastflow.nn.density_mlp import standard_normal_log_prob


def small_m2(likelihood: str = "bernoulli", features: int = 3, latent: int = 1, size: float = 0.7, **options) -> M2:
    """Scattered, 3 classes, float64."""
    model = M2((features,), 3, latent, (5,), likelihood, **{"prior": [0.5, 0.3, 0.2]} | options)
    return scatter(model.double(), size)


def small_m1(likelihood: str = "bernoulli", features: int = 3, latent: int = 1, size: float = 0.7) -> M1:
    return scatter(M1((features,), latent, (5, 4), likelihood).double(), size)


def all_bits(features: int = 3) -> Tensor:
    """Every binary x, [2^features, features]."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * features)


@torch.no_grad()
def true_log_joint(model: M2, x: Tensor) -> Tensor:
    """[B, K] log p(x, y = k): log of the integral over the one latent of p(k) p(z) p(x | k, z), on a grid."""
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    columns = []
    for k in range(model.classes):
        labels = torch.full((len(z),), k)
        log_prob = model.decoder.log_prob(x[:, None], z[None, :, None], labels) + standard_normal_log_prob(z[:, None])
        columns.append(log_prob.logsumexp(1) + math.log(z[1] - z[0]) + model.prior.log_prob()[k])
    return torch.stack(columns, 1)


def normal_nodes(count: int = 60) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Hermite rule for the expectation over a standard normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@torch.no_grad()
def expected_class_scores(model: M2, x: Tensor) -> Tensor:
    """[B, K] the expectation of G over the noise of its one latent."""
    nodes, weights = normal_nodes()
    scores = [model.class_terms(x, node.expand(len(x), model.classes))[0] for node in nodes]
    return sum(weight * score for weight, score in zip(weights, scores, strict=True))


def assert_estimates(estimates: Tensor, truth: Tensor) -> None:
    """Importance-sampled [n, ...] of log-densities [...]: unbiased but for half their variance, as the logarithm of a
    mean is."""
    deviation = estimates.std(0)
    assert (deviation > 0).all()
    assert ((estimates.mean(0) + 0.5 * deviation**2 - truth).abs() <= 5 * deviation / len(estimates) ** 0.5).all()

"""M1: a variational autoencoder, whose latents are features for any classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastflow.models.class_bound import ClassBound
from fastflow.nn.density_mlp import (
    GaussianMLP,
    density_mlp,
    importance_log_likelihood,
    normal_log_prob,
    reparameterized,
    standard_normal_kl,
)


class M1(ClassBound):
    """p(z) p(x | z) with z [B, latent] standard normal, and q(z | x) a diagonal Gaussian; K = 1, there are no classes.

        G = log p(x | z) - KL(q(z | x) || p(z)),   z = mean + std noise,   <= log p(x) in expectation

    shape       of one x
    latent      Z, the dimensions of z
    hidden      widths of the encoder's hidden layers; the decoder mirrors them
    likelihood  p(x | z): "bernoulli" for x in [0, 1], see `ops.binarize`; "gaussian" for real x, see `PCA`
    init_std    of the weights, None as in the authors' code; see `SoftplusMLP.initialize`

    Source: Kingma et al. 2014 (arXiv 1406.5298), section 2.1 and eq. 5.
    """

    classes = 1

    def __init__(self, shape: Sequence[int], latent: int = 50, hidden: Sequence[int] = (600, 600),
                 likelihood: str = "bernoulli", init_std: float | None = 0.001) -> None:
        super().__init__()
        self.shape, self.features = tuple(shape), math.prod(shape)
        self.binary = likelihood == "bernoulli"
        self.noise_features = self.latent = latent
        self.encoder = GaussianMLP(self.features, hidden, latent)
        self.decoder = density_mlp(likelihood)(latent, hidden[::-1], self.features)
        for net in (self.encoder, self.decoder):
            net.initialize(init_std)

    @classmethod
    def mnist(cls, preset: str = "paper") -> M1:
        """The MNIST model, 28 x 28 and 50 latents: "paper" with hidden layers of 600, "code" with 500 as released."""
        if preset not in ("paper", "code"):
            raise ValueError(f"M1.mnist: preset is {preset!r}, expected 'paper' or 'code'")
        return cls((1, 28, 28)) if preset == "paper" else cls((1, 28, 28), hidden=(500, 500), init_std=None)

    def class_terms(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, (mean, log_variance) = self._flat(x), self.posterior(x)
        z = reparameterized(mean, log_variance, self._noise(noise, x, (self.latent,)))
        bound = (self.decoder.log_prob(x, z) - standard_normal_kl(mean, log_variance))[:, None]
        return bound, torch.zeros_like(bound)

    def log_q(self, x: Tensor) -> Tensor:
        return self._flat(x).new_zeros(len(x), 1)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log-variance) of q(z | x), each [B, Z]."""
        return self.encoder.parameters_of(self._flat(x))

    def log_likelihood_ratio(self, x: Tensor, z: Tensor) -> Tensor:
        """[B] log p(x | z) - log q(z | x), of z [B, Z]; its mean over q(z | x) with log p(z) added is the elbo."""
        return self.decoder.log_prob(self._flat(x), z) - normal_log_prob(z, *self.posterior(x))

    def importance_log_prob(self, x: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """[B] estimate of log p(x) from S = `samples` draws of z; see `importance_log_likelihood`."""
        return importance_log_likelihood(self.decoder, self._flat(x), *self.posterior(x), samples, generator)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """[B, Z] the mean of q(z | x), the features of the paper's classifiers; see `feature_classifier`."""
        return self.posterior(x)[0]

    @torch.no_grad()
    def active_units(self, x: Tensor, threshold: float = 0.1) -> Tensor:
        """The latents, int64 ascending, whose mean's standard deviation over the rows of x is more than `threshold`.

        The others hold no more than their prior: as features they are noise. The authors look at 1000 rows.
        Raises ValueError for fewer than 2 rows or where no latent is left.
        """
        if len(x) < 2:
            raise ValueError(f"M1.active_units: x has {len(x)} row(s), expected at least 2")
        deviation = self.embed(x).std(0)
        if not (deviation > threshold).any():
            raise ValueError(f"M1.active_units: every standard deviation is at most {deviation.max().item():.3g}, "
                             f"expected one above threshold = {threshold}; train longer")
        return (deviation > threshold).nonzero()[:, 0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """[N, *shape] means of p(x | z), of z [N, Z]."""
        return self.decoder.mean(z).view(len(z), *self.shape)

    def sample(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """[n, *shape] means of p(x | z), z drawn from the prior with standard deviation `temperature`."""
        like = self.decoder.input.weight
        z = torch.randn(n, self.latent, generator=generator, dtype=like.dtype, device=like.device)
        return self.decode(temperature * z)

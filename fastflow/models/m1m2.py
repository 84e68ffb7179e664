"""M1+M2: M2 on the latents of a trained M1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastflow.models.class_bound import ClassBound
from fastflow.models.m1 import M1
from fastflow.models.m2 import M2
from fastflow.nn.density_mlp import GaussianMLP, reparameterized, standard_normal_log_prob


class M1M2(ClassBound):
    """p(y) p(z2) p(z1 | y, z2) p(x | z1): M2's data are draws of M1's q(z1 | x), a new one for each minibatch.

        log_base = log p(x | z1) - log q(z1 | x) + log N(z1 of the other units; 0, I)      G = M2's, of z1[units]

    m1     trained; from here on frozen (its parameters no longer require gradients)
    m2     Gaussian, on len(units) features
    units  int64, the latents of M1 that M2 describes, see `M1.active_units`; the others keep their prior

    noise is [B, Z1 + K Z2]; None classifies the mean of q(z1 | x), as the test does.
    Source: Kingma et al. 2014 (arXiv 1406.5298), sections 2.1 and 4.1.
    """

    def __init__(self, m1: M1, m2: M2, units: Tensor) -> None:
        super().__init__()
        if m2.shape != (len(units),):
            raise ValueError(f"M1M2: m2 describes shape {m2.shape}, expected ({len(units)},): one feature for each of "
                             "units")
        if len(units) and not 0 <= int(units.min()) <= int(units.max()) < m1.latent:
            raise ValueError(f"M1M2: units lie in [{int(units.min())}, {int(units.max())}], expected 0 to "
                             f"{m1.latent - 1}, M1's latents")
        if len(units.unique()) < len(units):
            raise ValueError(f"M1M2: units {units.tolist()} name a latent twice, expected each once")
        if not isinstance(m2.decoder, GaussianMLP):
            raise ValueError("M1M2: m2's likelihood is bernoulli, expected gaussian: latents are real numbers")
        self.m1, self.m2 = m1.requires_grad_(False), m2
        self.shape, self.features, self.classes, self.latent = m1.shape, m1.features, m2.classes, m2.latent
        self.binary = m1.binary
        self.noise_features = m1.noise_features + m2.noise_features
        described = torch.zeros(m1.latent, dtype=torch.bool).index_fill(0, units.cpu(), True)
        device = m1.decoder.input.weight.device
        self.register_buffer("units", units.clone().to(device))
        self.register_buffer("other_units", (~described).nonzero()[:, 0].to(device))

    @classmethod
    def build(cls, m1: M1, units: Tensor, classes: int, latent: int = 50, hidden: Sequence[int] = (500,),
              prior: str | Sequence[float] | Tensor = "uniform", init_std: float | None = 0.001) -> M1M2:
        """With a new M2 of these sizes, see `M2`, of m1's dtype and on its device; the paper has hidden layers of 300
        for 100 labels, else of 500."""
        m2 = M2((len(units),), classes, latent, hidden, "gaussian", prior, init_std)
        return cls(m1, m2.to(m1.decoder.input.weight), units)

    def class_terms(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        of_m1, of_m2 = self._parts(noise, x)
        return self.m2.class_terms(self._latents(x, of_m1)[:, self.units], of_m2)

    def log_base(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        z1 = self._latents(x, self._parts(noise, x)[0])
        return self.m1.log_likelihood_ratio(x, z1) + standard_normal_log_prob(z1[:, self.other_units])

    def log_q(self, x: Tensor) -> Tensor:
        return self.m2.log_q(self._features(x))

    def weight_penalty(self) -> Tensor:
        """M2's: M1 is frozen."""
        return self.m2.weight_penalty()

    def embed(self, x: Tensor, y: int | Tensor | None = None) -> Tensor:
        """[B, Z2] the style of x, see `M2.embed`."""
        return self.m2.embed(self._features(x), y)

    @torch.no_grad()
    def decode(self, z: Tensor, y: int | Tensor | None = None) -> Tensor:
        """As `M2.decode`, through the mean of p(z1 | y, z2) to that of p(x | z1): [N, *shape] or [N, K, *shape]."""
        return self._images(self.m2.decode(z, y))

    def analogies(self, x: Tensor, y: int | Tensor | None = None) -> Tensor:
        """[B, K, *shape] x's style with every class, see `M2.analogies`."""
        return self.decode(self.embed(x, y))

    @torch.no_grad()
    def sample(self, n: int, y: int | Tensor | None = None, temperature: float = 1.0,
               generator: torch.Generator | None = None) -> Tensor:
        """[n, *shape] means of p(x | z1), of samples as `M2.sample` has them."""
        return self._images(self.m2.sample(n, y, temperature, generator))

    def _parts(self, noise: Tensor | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The noise of M1 and that of M2."""
        noise = self._noise(noise, x, (self.noise_features,))
        return (None, None) if noise is None else noise.split([self.m1.noise_features, self.m2.noise_features], dim=1)

    def _latents(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """z1 [B, Z1], drawn or the mean."""
        return reparameterized(*self.m1.posterior(x), noise)

    def _features(self, x: Tensor) -> Tensor:
        return self._latents(x, None)[:, self.units]

    def _images(self, means: Tensor) -> Tensor:
        """[*, *shape] means of p(x | z1), of means [*, len(units)] of p(z1 | y, z2); the other units are 0."""
        z1 = means.new_zeros(*means.shape[:-1], self.m1.latent).index_copy(-1, self.units, means)
        return self.m1.decode(z1.flatten(0, -2)).view(*means.shape[:-1], *self.shape)

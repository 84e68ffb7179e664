"""M2: a variational autoencoder of data and classes, with a classifier beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastflow.models.class_bound import ClassBound
from fastflow.nn.class_prior import ClassPrior
from fastflow.nn.density_mlp import (
    GaussianMLP,
    SoftplusMLP,
    density_mlp,
    importance_log_likelihood,
    reparameterized,
    standard_normal_kl,
)
from fastflow.ops._checks import compute_dtype


class M2(ClassBound):
    """p(y) p(z) p(x | y, z) with z [B, latent] standard normal, q(z | x, y) a diagonal Gaussian, q(y | x) a classifier.

        G[k] = log p(x | y = k, z_k) + log p(y = k) - KL(q(z | x, k) || p(z)),   z_k = mean_k + std_k noise_k

    Every class has its own noise. All classes are one batch [B, K, ...], and what the encoder's first layer makes of x
    is computed once for all of them. p(x | y, z) of the classes is in memory at once: B K D numbers.

    shape       of one x
    classes     K
    latent      Z, the dimensions of z
    hidden      widths of the hidden layers of encoder and classifier; the decoder mirrors them
    likelihood  p(x | y, z): "bernoulli" for x in [0, 1], see `ops.binarize`; "gaussian" for real x, see `PCA`
    prior       p(y), see `ClassPrior`
    init_std    of the weights, None as in the authors' code; see `SoftplusMLP.initialize`

    noise is [B, K Z]. Source: Kingma et al. 2014 (arXiv 1406.5298), section 2.1 and eqs. 6 to 9.
    """

    def __init__(self, shape: Sequence[int], classes: int, latent: int = 50, hidden: Sequence[int] = (500,),
                 likelihood: str = "bernoulli", prior: str | Sequence[float] | Tensor = "uniform",
                 init_std: float | None = 0.001) -> None:
        super().__init__()
        self.shape, self.features = tuple(shape), math.prod(shape)
        self.binary = likelihood == "bernoulli"
        self.classes, self.latent, self.noise_features = classes, latent, classes * latent
        self.prior = ClassPrior(classes, prior)
        self.encoder = GaussianMLP(self.features, hidden, latent, classes)
        self.decoder = density_mlp(likelihood)(latent, hidden[::-1], self.features, classes)
        self.classifier = SoftplusMLP(self.features, hidden, classes)
        for net in (self.encoder, self.decoder, self.classifier):
            net.initialize(init_std)

    @classmethod
    def mnist(cls, preset: str = "paper") -> M2:
        """The MNIST model on pixels, 28 x 28 and 50 latents: "paper" with one hidden layer of 500, "code" with two, as
        the released model that is trained with all labels."""
        if preset not in ("paper", "code"):
            raise ValueError(f"M2.mnist: preset is {preset!r}, expected 'paper' or 'code'")
        return cls((1, 28, 28), 10) if preset == "paper" else cls((1, 28, 28), 10, hidden=(500, 500), init_std=None)

    def class_terms(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_q, (mean, log_variance) = self.log_q(x), self.posterior(x)
        z = reparameterized(mean, log_variance, self._noise(noise, x, (self.classes, self.latent)))
        scores = self.decoder.log_prob(self._flat(x)[:, None], z) - standard_normal_kl(mean, log_variance)
        return scores + self.prior.log_prob(), log_q

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log-variance) of q(z | x, y = k) for every class, each [B, K, Z]."""
        return self.encoder.parameters_of(self._flat(x)[:, None])

    def log_q(self, x: Tensor) -> Tensor:
        logits = self.classifier(self._flat(x))
        return torch.log_softmax(logits.to(compute_dtype(logits)), dim=1)

    def weight_penalty(self) -> Tensor:
        """-log p(weights) up to a constant, 0-d: matrices and the classifier's biases are N(0, 1), as in the authors'
        code."""
        biases = [value for name, value in self.classifier.named_parameters() if name.endswith("bias")]
        return super().weight_penalty() + 0.5 * sum(bias.square().sum() for bias in biases)

    def importance_scores(self, x: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """[B, K] estimates of log p(x, y = k) from S = `samples` draws of z for each class.

        Softmax of them is the importance-sampled classifier, logsumexp an estimate of log p(x). In expectation they are
        lower bounds that grow with S; the authors take 1000. See `importance_log_likelihood`.
        """
        x, (mean, log_variance) = self._flat(x), self.posterior(x)
        scores = importance_log_likelihood(self.decoder, x[:, None], mean, log_variance, samples, generator)
        return scores + self.prior.log_prob()

    @torch.no_grad()
    def embed(self, x: Tensor, y: int | Tensor | None = None) -> Tensor:
        """[B, Z] the mean of q(z | x, y), the style of x.

        y  the class of x, one for all or labels [B]; None: the predicted one
        """
        labels = self.predict(x) if y is None else self._labels(y, len(x))
        return self.encoder.mean(self._flat(x), labels)

    @torch.no_grad()
    def decode(self, z: Tensor, y: int | Tensor | None = None) -> Tensor:
        """Means of p(x | y, z), of z [N, Z]: [N, *shape] with class y, one for all or labels [N].

        None: every style with every class, [N, K, *shape]. Style grids are this of z that vary, for instance of
        `style_plane`.
        """
        if y is None:
            return self.decoder.mean(z[:, None]).view(len(z), self.classes, *self.shape)
        return self.decoder.mean(z, self._labels(y, len(z))).view(len(z), *self.shape)

    def analogies(self, x: Tensor, y: int | Tensor | None = None) -> Tensor:
        """[B, K, *shape] x's style with every class; y is x's own class, None: the predicted one."""
        return self.decode(self.embed(x, y))

    def sample(self, n: int, y: int | Tensor | None = None, temperature: float = 1.0,
               generator: torch.Generator | None = None) -> Tensor:
        """[n, *shape] means of p(x | y, z), z drawn from the prior with standard deviation `temperature`.

        y  one class for all, or labels [n]; None: drawn from p(y)
        """
        like = self.decoder.input.weight
        labels = self.prior.sample(n, generator) if y is None else self._labels(y, n)
        z = torch.randn(n, self.latent, generator=generator, dtype=like.dtype, device=like.device)
        return self.decode(temperature * z, labels)


def style_plane(latent: int, steps: int, dims: tuple[int, int] = (0, 1)) -> Tensor:
    """[steps^2, latent] styles on a grid in two of the dimensions, the others 0, row by row.

    The steps are equally probable under the standard normal prior: quantiles (i + 1/2) / steps.
    """
    if steps < 1 or len(set(dims)) != 2 or not all(0 <= dim < latent for dim in dims):
        raise ValueError(f"style_plane: steps is {steps} and dims {dims}, expected at least 1 and two different ones "
                         f"of 0 to {latent - 1}")
    quantiles = torch.special.ndtri((torch.arange(steps, dtype=torch.float64) + 0.5) / steps).float()
    z = torch.zeros(steps**2, latent)
    z[:, list(dims)] = torch.cartesian_prod(quantiles, quantiles)
    return z
